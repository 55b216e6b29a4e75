"""The HTTP server on a socket: where it listens, what it bounds, and how it stops."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import httpx
import pytest

from services.gateway.http.probes import Health
from services.gateway.http.running import Running
from services.gateway.http.server import HttpServer
from swaa_runtime.errors import InvalidRequest
from tests.services.sessions.builders import asynchronous

from .builders import MODEL, FakeAnswers, accepted, answered, make_app, token

BODY = {"model": MODEL, "prompt": "x", "stream": True}


class Gated(FakeAnswers):
    """A token, and the rest when it is let through."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def answer(self, *args: Any, **kwargs: Any) -> Any:
        yield accepted()
        yield token("a")
        await self.gate.wait()
        yield answered(1)


async def started(answers: Any, health: Health | None = None) -> HttpServer:
    running = Running()
    server = HttpServer(make_app(answers, running, health), running, "127.0.0.1:0")
    await server.start()
    return server


def client_of(server: HttpServer) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=60)


@asynchronous
async def test_it_serves_and_leaves_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    health = Health()
    server = await started(FakeAnswers(), health)
    async with client_of(server) as client:
        assert (await client.get("/readyz")).status_code == 503
        health.serving = True
        assert (await client.get("/readyz")).status_code == 200
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
        with pytest.raises(InvalidRequest, match=r"http_listen is .*: cannot be listened on"):
            HttpServer(make_app(FakeAnswers()), Running(), f"127.0.0.1:{server.port}")
    await server.stop(0)
    async with client_of(server) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("/readyz")


@pytest.mark.parametrize("listen", ["nowhere", ":8080", "127.0.0.1:port", "256.0.0.1:0", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_refused(listen: str) -> None:
    with pytest.raises(InvalidRequest, match="http_listen is"):
        HttpServer(make_app(FakeAnswers()), Running(), listen)


@asynchronous
async def test_a_running_request_may_finish_while_it_stops() -> None:
    answers = Gated()
    server = await started(answers)
    async with client_of(server) as client, client.stream("POST", "/v1/completions", json=BODY) as answer:
        lines = answer.aiter_lines()
        assert "accepted" in await anext(lines)
        stopping = asyncio.create_task(server.stop(10))
        await asyncio.sleep(0)
        answers.gate.set()
        assert [line async for line in lines if line][-1] == "data: [DONE]"
    await asyncio.wait_for(stopping, 120)


@asynchronous
async def test_what_runs_longer_is_ended_and_told_so() -> None:
    server = await started(Gated())
    async with client_of(server) as client, client.stream("POST", "/v1/completions", json=BODY) as answer:
        lines = answer.aiter_lines()
        assert "accepted" in await anext(lines)
        stopping = asyncio.create_task(server.stop(0))
        rest = [line async for line in lines if line]
    assert rest[-2] == "event: error"
    assert "gateway_stopping" in rest[-1]
    await asyncio.wait_for(stopping, 120)


@asynchronous
async def test_a_body_is_refused_by_its_length_before_it_is_read() -> None:
    server = await started(FakeAnswers())
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    length = (64 << 20) + 1
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}"
    writer.write(f"{head}\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), 120)
    assert answer.startswith(b"HTTP/1.1 413 ")
    writer.close()
    await server.stop(0)
