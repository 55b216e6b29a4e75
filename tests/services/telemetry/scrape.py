"""What Prometheus would read of a tiny service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from services.gateway.auth.authenticator import Everybody
from services.gateway.auth.file_metrics import FileMetrics
from services.telemetry.certificate_metrics import CertificateMetrics
from services.telemetry.engine_metrics import EngineMetrics
from services.telemetry.metrics import AuthenticationMetrics
from services.telemetry.page import MetricsPage
from services.telemetry.process import Telemetry, running_telemetry
from swaa_runtime.engine import Engine
from tests.services.tiny_service import TinyService, tiny_service


@dataclass(frozen=True, slots=True)
class Samples:
    """One scrape."""

    text: str

    def values(self, name: str, **labels: str) -> list[float]:
        """Of all samples of that name that have those labels."""
        return [
            sample.value
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def value(self, name: str, **labels: str) -> float:
        (value,) = self.values(name, **labels)
        return value

    @property
    def names(self) -> dict[str, set[str] | None]:
        """Names of all samples there can be, with the labels that they were seen with; None: none was seen."""
        found: dict[str, set[str] | None] = {}
        for family in text_string_to_metric_families(self.text):
            for suffix in {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",)):
                found[family.name + suffix] = None
            for sample in family.samples:
                found[sample.name] = {*(found.get(sample.name) or ()), *sample.labels}
        return found


async def scrape(page: MetricsPage) -> Samples:
    transport = httpx.ASGITransport(page.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://metrics") as client:
        response = await client.get("/metrics")
    assert response.status_code == 200
    return Samples(response.text)


@asynccontextmanager
async def scraped_service() -> AsyncIterator[tuple[TinyService, MetricsPage]]:
    """A tiny service, and its page of metrics."""
    async with running_telemetry("", "tiny") as telemetry, tiny_service(telemetry) as service:
        AuthenticationMetrics(telemetry.registry)  # as a service that asks for credentials has them
        FileMetrics(telemetry.registry, Everybody())
        yield service, page_of(service, telemetry)


def page_of(service: TinyService, telemetry: Telemetry) -> MetricsPage:
    engine = EngineMetrics(telemetry.registry, lambda: service.rig.loop.call(Engine.usage), patience_s=20.0)
    CertificateMetrics(telemetry.registry, {"clients": None})
    return MetricsPage(telemetry.registry, [engine.refresh])
