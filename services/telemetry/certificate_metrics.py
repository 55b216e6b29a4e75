"""How long a process's certificates are valid yet, and whether their files have newer ones that cannot be used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.certificate_source import CertificateSource

Wire: TypeAlias = Literal["clients", "replicas"]
"""Who is at the other end: clients, or gateways and replicas among themselves."""


class CertificateMetrics(Collector):
    """Of one process; None: a wire without TLS."""

    def __init__(self, registry: CollectorRegistry, sources: Mapping[Wire, CertificateSource | None]) -> None:
        self._sources = {wire: source for wire, source in sources.items() if source is not None}
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        expiry = GaugeMetricFamily(
            "swaa_tls_certificate_expiry_timestamp_seconds",
            "When the certificate in use ends to be valid",
            labels=("wire",),
        )
        bad = GaugeMetricFamily(
            "swaa_tls_reload_error", "1 while the certificate's files cannot be used", labels=("wire",)
        )
        failures = CounterMetricFamily(
            "swaa_tls_reload_failures", "Changed certificates that were not used", labels=("wire",)
        )
        for wire, source in self._sources.items():
            expiry.add_metric((wire,), source.current.expires_at_s)
            bad.add_metric((wire,), bool(source.error))
            failures.add_metric((wire,), source.num_failures)
        yield expiry
        yield bad
        yield failures
