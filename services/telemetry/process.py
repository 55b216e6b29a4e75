"""What one process tells of itself. Traces go out from here: all that needs OpenTelemetry's SDK, which is an extra."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, ProcessCollector

from services.telemetry.tracing import Tracing
from swaa_runtime.errors import InvalidRequest

FLUSH_MS = 2000
"""How long a process that stops waits for its last spans to go out."""


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Passed to whatever has something to tell. As it is made without arguments, nobody listens."""

    tracing: Tracing = field(default_factory=Tracing)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)


@contextlib.asynccontextmanager
async def running_telemetry(otlp_endpoint: str, service_name: str) -> AsyncIterator[Telemetry]:
    """Of this process, until the end of the context.

    Args:
        otlp_endpoint: where traces go, by OTLP over gRPC: http://host:port; empty: nowhere.
        service_name: what this process is called there.

    Raises:
        InvalidRequest: if traces are to go somewhere, and the SDK is not installed.
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    async with _exporting(otlp_endpoint, service_name) as tracing:
        yield Telemetry(tracing, registry)


@contextlib.asynccontextmanager
async def _exporting(endpoint: str, service_name: str) -> AsyncIterator[Tracing]:
    if not endpoint:
        yield Tracing()
        return
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as exc:
        bound = "needs OpenTelemetry's SDK and OTLP exporter: install swaa[telemetry]"
        raise InvalidRequest("otlp_endpoint", endpoint, bound) from exc
    provider = TracerProvider(resource=Resource.create({"service.name": service_name}), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield Tracing(provider)
    finally:
        await asyncio.to_thread(provider.force_flush, FLUSH_MS)
        await asyncio.to_thread(provider.shutdown)
