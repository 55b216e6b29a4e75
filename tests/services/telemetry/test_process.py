"""Where a process's traces go, and its own page of metrics."""

from __future__ import annotations

import sys
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc

from services.http_server import serving
from services.telemetry.page import MetricsPage
from services.telemetry.process import running_telemetry
from swaa_runtime.errors import InvalidRequest
from tests.services.replica.builders import asynchronous


class FakeCollector(otlp_grpc.TraceServiceServicer):
    """Takes spans."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        return otlp.ExportTraceServiceResponse()


@asynchronous
async def test_spans_go_to_the_collector_before_the_process_ends() -> None:
    collector, server = FakeCollector(), grpc.aio.server()
    otlp_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with running_telemetry(f"http://127.0.0.1:{port}", "swaa-test") as telemetry:
            with telemetry.tracing.span("gateway.answer"):
                pass
    finally:
        await server.stop(0)
    (sent,) = [spans for request in collector.requests for spans in request.resource_spans]
    assert [span.name for scope in sent.scope_spans for span in scope.spans] == ["gateway.answer"]
    names = {item.key: item.value.string_value for item in sent.resource.attributes}
    assert names["service.name"] == "swaa-test"


@asynchronous
async def test_without_the_sdk_an_endpoint_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    async with running_telemetry("", "swaa-test") as telemetry:
        assert telemetry.tracing.span("answer").headers == ()
    with pytest.raises(InvalidRequest, match=r"otlp_endpoint is .*swaa\[telemetry\]"):
        async with running_telemetry("http://127.0.0.1:1", "swaa-test"):
            pass


@asynchronous
async def test_a_page_of_its_own_on_a_port_of_its_own() -> None:
    async with running_telemetry("", "swaa-test") as telemetry:
        app = MetricsPage(telemetry.registry).app()
        async with serving(app, "metrics_listen", "127.0.0.1:0") as server, httpx.AsyncClient() as client:
            response = await client.get(f"http://127.0.0.1:{server.port}/metrics")
            with pytest.raises(InvalidRequest, match="metrics_listen is"):
                async with serving(app, "metrics_listen", f"127.0.0.1:{server.port}"):
                    pass
    assert "process_resident_memory_bytes" in response.text
