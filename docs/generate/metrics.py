"""Every metric that a process exports, read from the objects that export it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.metrics import MetricWrapperBase

from docs.generate.markdown import code, table
from docs.generate.memory import catalogs
from services.gateway.auth.authenticator import Everybody
from services.gateway.auth.file_metrics import FileMetrics
from services.gateway.catalog_metrics import CatalogMetrics
from services.gateway.catalog_source import FixedCatalog
from services.telemetry.certificate_metrics import CertificateMetrics
from services.telemetry.engine_metrics import EngineMetrics
from services.telemetry.metrics import AnswerMetrics, AuthenticationMetrics, QuotaMetrics, StoreMetrics
from swaa_runtime.usage import BlockUse, EngineUsage

ENDINGS = {"counter": "_total", "histogram": "_bucket"}
"""What is added to a family's name in a query."""


def metrics_table() -> str:
    """A row each."""
    rows = [*_wrapped(AnswerMetrics, "gateway"), *_wrapped(AuthenticationMetrics, "gateway"), _credentials()]
    rows += [*_wrapped(QuotaMetrics, "gateway"), *_collected_catalog(), *_collected_engine()]
    rows += _wrapped(StoreMetrics, "gateway, replica")
    rows += _collected_certificates()
    return table(["metric", "kind", "labels", "of", "what it counts"], rows)


def _wrapped(kind: Callable[[CollectorRegistry], object], owner: str) -> list[list[str]]:
    metrics = [each for each in vars(kind(CollectorRegistry())).values() if isinstance(each, MetricWrapperBase)]
    # Without samples a family does not tell its labels, and prometheus_client has no public way to ask.
    return [_row(next(iter(each.collect())), each._labelnames, owner) for each in metrics]


def _credentials() -> list[str]:
    [family] = FileMetrics(CollectorRegistry(), Everybody()).collect()
    return _row(family, ("file",), "gateway")


def _collected_catalog() -> list[list[str]]:
    collector = CatalogMetrics(CollectorRegistry(), FixedCatalog(catalogs()["smollm2"]))
    return [_row(family, family.samples[0].labels, "gateway") for family in collector.collect()]


def _collected_certificates() -> list[list[str]]:
    families = CertificateMetrics(CollectorRegistry(), {}).collect()
    return [_row(family, ("wire",), "gateway, replica") for family in families]


def _collected_engine() -> list[list[str]]:
    async def usage() -> EngineUsage:
        return EngineUsage(0, 0, dict.fromkeys(get_args(BlockUse), 0), 0, 0.0, 0, 0)

    collector = EngineMetrics(CollectorRegistry(), usage)
    asyncio.run(collector.refresh())
    return [_row(family, family.samples[0].labels, "replica") for family in collector.collect()]


def _row(family: Metric, labels: object, owner: str) -> list[str]:
    names = ", ".join(map(code, labels)) if isinstance(labels, list | tuple | dict) else ""
    return [code(family.name + ENDINGS.get(family.type, "")), family.type, names, owner, family.documentation]
