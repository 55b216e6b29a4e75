"""Whether the files with keys have something newer that cannot be used."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.gateway.auth.authenticator import Authenticator


class FileMetrics(Collector):
    """Of one gateway. Read it in the authenticator's event loop."""

    def __init__(self, registry: CollectorRegistry, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        told = GaugeMetricFamily(
            "swaa_credentials_error",
            "1 while a file of keys cannot be used, and what it said before is",
            labels=("file",),
        )
        for setting, error in self._authenticator.file_errors.items():
            told.add_metric((setting,), bool(error))
        yield told
