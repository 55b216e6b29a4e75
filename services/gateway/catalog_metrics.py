"""What the catalogue in use promises, and whether the file has a newer one that cannot be used."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.gateway.catalog_source import Catalogs


class CatalogMetrics(Collector):
    """Of one gateway. Read it in the catalogue's event loop."""

    def __init__(self, registry: CollectorRegistry, catalogs: Catalogs) -> None:
        self._catalogs = catalogs
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        classes = self._catalogs.current.sla_classes
        ttft = GaugeMetricFamily("swaa_sla_ttft_target_seconds", "What a class aims at", labels=("sla_class",))
        tpot = GaugeMetricFamily("swaa_sla_tpot_target_seconds", "What a class aims at", labels=("sla_class",))
        for name, sla_class in classes.items():
            ttft.add_metric((name,), sla_class.ttft_ms / 1e3)
            tpot.add_metric((name,), sla_class.tpot_ms / 1e3)
        yield ttft
        yield tpot
        yield GaugeMetricFamily(
            "swaa_catalog_error", "1 while the catalogue's file cannot be used", value=bool(self._catalogs.error)
        )
        yield GaugeMetricFamily(
            "swaa_catalog_loaded_timestamp_seconds", "When it was read", value=self._catalogs.loaded_at_s
        )
