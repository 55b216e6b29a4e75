"""Connections whose client does not do what it has to are cut off; those that do are left alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from starlette.types import Receive, Scope, Send

from services import http_server
from services.http_connection import MAX_HEAD_BYTES, ImpatientProtocol
from services.http_server import AppServer, serving
from tests.services.sessions.builders import asynchronous

GET = b"GET / HTTP/1.1\r\nhost: x\r\n"


class Quick(ImpatientProtocol):
    head_timeout_s = 0.2
    read_timeout_s = 0.2


class App:
    """Answers with so many pieces of 64 KiB."""

    def __init__(self, pieces: int = 0) -> None:
        self.pieces = pieces
        self.gone = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(self.pieces):
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        await send({"type": "http.response.body", "body": b"end"})
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone.set()


@contextlib.asynccontextmanager
async def served(app: App, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AppServer]:
    monkeypatch.setattr(http_server, "ImpatientProtocol", Quick)
    async with serving(app, "listen", "127.0.0.1:0") as server:
        yield server


async def connect(server: AppServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", server.port, limit=1024)


@asynchronous
async def test_silence_is_cut_off() -> None:
    with pytest.MonkeyPatch.context() as patch:
        async with served(App(), patch) as server:
            reader, writer = await connect(server)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()


@asynchronous
async def test_a_head_that_drips_is_cut_off() -> None:
    with pytest.MonkeyPatch.context() as patch:
        async with served(App(), patch) as server:
            reader, writer = await connect(server)
            writer.write(GET)
            reading = asyncio.create_task(reader.read())
            while not reading.done():
                writer.write(b"a: b\r\n")
                await asyncio.sleep(0.01)
            with contextlib.suppress(ConnectionResetError):
                assert await reading == b"", "the request was never whole, so it was never answered"
            writer.close()


@asynchronous
async def test_an_answer_that_nobody_reads_is_cut_off_and_its_request_ended() -> None:
    app = App(pieces=1000)
    with pytest.MonkeyPatch.context() as patch:
        async with served(app, patch) as server:
            _, writer = await connect(server)
            writer.write(GET + b"\r\n")
            await app.gone.wait()
            writer.close()


@asynchronous
async def test_a_client_that_reads_gets_all_of_it_and_may_ask_again() -> None:
    with pytest.MonkeyPatch.context() as patch:
        async with served(App(pieces=20), patch) as server:
            reader, writer = await connect(server)
            for _ in range(2):
                writer.write(GET + b"\r\n")
                size = 0
                while True:
                    piece = await reader.read(65536)
                    size += len(piece)
                    if piece.endswith(b"0\r\n\r\n"):
                        break
                assert size > 20 * 65536
            writer.close()


class Reading:
    """Reads a whole body, then answers; or begins to answer first."""

    def __init__(self, answers_first: bool) -> None:
        self.answers_first = answers_first
        self.ended = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.answers_first:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        while (message := await receive()).get("more_body"):
            pass
        if not self.answers_first:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": message["type"].encode()})
        self.ended.set()


@pytest.mark.parametrize("answers_first", [False, True])
def test_a_body_that_breaks_off_is_refused_once_and_ends_its_request(
    answers_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    @asynchronous
    async def send_it() -> None:
        app = Reading(answers_first)
        async with serving(app, "listen", "127.0.0.1:0") as server:
            reader, writer = await connect(server)
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
            if answers_first:
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            else:
                await asyncio.sleep(0.05)
            writer.write(b"no chunk\r\n")
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 400") is not answers_first
            assert b"HTTP/1.1 200" not in answer
            await app.ended.wait()
            writer.close()

    send_it()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@asynchronous
async def test_a_head_that_comes_whole_is_bounded_too() -> None:
    with pytest.MonkeyPatch.context() as patch:
        async with served(App(), patch) as server:
            reader, writer = await connect(server)
            writer.write(GET + b"a: " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n")
            answer = await reader.read()
            assert answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))
            writer.close()


@asynchronous
async def test_connections_above_the_bound_are_refused() -> None:
    server = AppServer(App(), "listen", "127.0.0.1:0", max_connections=2)
    await server.start()
    first = await connect(server)
    first[1].write(GET + b"\r\n")
    assert (await first[0].readline()).startswith(b"HTTP/1.1 200")
    second = await connect(server)
    second[1].write(GET + b"\r\n")
    assert (await second[0].readline()).startswith(b"HTTP/1.1 503")
    for _, writer in (first, second):
        writer.close()
    await server.stop(0)
