"""Sends spans to an OpenTelemetry collector. All that needs its SDK, which is an extra."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from services.telemetry.tracing import Tracing
from swaa_runtime.errors import InvalidRequest

FLUSH_MS = 2000
"""How long a process that stops waits for its last spans to go out."""


@contextlib.asynccontextmanager
async def exporting(endpoint: str, service_name: str) -> AsyncIterator[Tracing]:
    """Traces of this process, sent to `endpoint` (OTLP over gRPC, http://host:port); empty: nowhere.

    Raises:
        InvalidRequest: if it is set, and the SDK is not installed.
    """
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
