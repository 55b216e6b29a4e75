"""What gRPC's transport bounds, seen from a socket: streams, headers, pings, connections; and silent readers."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from services.gateway.auth.authenticator import Everybody
from services.gateway.limits import MAX_HEADER_BYTES, MAX_STREAMS
from services.gateway.server import GatewayServer
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.pb.swaa.v1 import long_context_pb2_grpc as pb_grpc
from tests.services.sessions.builders import asynchronous

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
MAX_CONCURRENT_STREAMS, MAX_HEADER_LIST_SIZE = 3, 6
ENHANCE_YOUR_CALM = 11


class Endless(pb_grpc.LongContextServicer):
    """Says something for ever, and counts how often that was wanted."""

    def __init__(self) -> None:
        self.written = 0
        self.ended = asyncio.Event()

    async def GetSession(self, request: Any, context: Any) -> pb.Session:  # noqa: N802
        return pb.Session()

    async def ExportSession(self, request: Any, context: Any) -> AsyncIterator[pb.ExportSessionResponse]:  # noqa: N802
        try:
            while True:
                self.written += 1
                yield pb.ExportSessionResponse(chunk=b"x" * 100_000)
        finally:
            self.ended.set()


@contextlib.asynccontextmanager
async def served(service: Any, **options: Any) -> AsyncIterator[GatewayServer]:
    server = GatewayServer(service, Everybody(), "127.0.0.1:0", **options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


def frame(kind: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, 0, 0, 0, 0, 0]) + payload


async def read_frame(reader: asyncio.StreamReader, kind: int) -> bytes:
    """The payload of the next frame of this kind."""
    while True:
        head = await reader.readexactly(9)
        payload = await reader.readexactly(int.from_bytes(head[:3]))
        if head[3] == kind:
            return payload


async def hello(server: GatewayServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, dict[int, int]]:
    """A connection, and the settings that the server told."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(PREFACE + frame(SETTINGS, b""))
    try:
        settings = await read_frame(reader, SETTINGS)
    except BaseException:
        writer.close()
        raise
    return reader, writer, dict(struct.iter_unpack(">HI", settings))


@asynchronous
async def test_a_connection_is_told_how_many_calls_and_headers_it_may_have() -> None:
    async with served(Endless()) as server:
        _, writer, settings = await hello(server)
        assert settings[MAX_CONCURRENT_STREAMS] == MAX_STREAMS
        assert settings[MAX_HEADER_LIST_SIZE] == MAX_HEADER_BYTES
        writer.close()


@asynchronous
async def test_calls_above_the_bound_are_refused_and_there_is_room_again_when_one_has_ended() -> None:
    async with (
        served(Endless(), max_calls=1) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = pb_grpc.LongContextStub(channel)  # type: ignore[no-untyped-call]
        endless = stub.ExportSession(pb.ExportSessionRequest())
        await endless.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetSession(pb.GetSessionRequest())
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        endless.cancel()
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await stub.GetSession(pb.GetSessionRequest())
                break


@asynchronous
async def test_headers_above_the_bound_are_refused_with_the_bound() -> None:
    async with served(Endless()) as server, grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = pb_grpc.LongContextStub(channel)  # type: ignore[no-untyped-call]
        request = pb.GetSessionRequest(session_id="x")
        assert await stub.GetSession(request, metadata=(("x-other", "v" * (MAX_HEADER_BYTES // 2)),)) == pb.Session()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetSession(request, metadata=(("x-other", "v" * MAX_HEADER_BYTES),))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert str(MAX_HEADER_BYTES) in str(caught.value.details())


@asynchronous
async def test_a_client_that_pings_too_often_is_cut_off() -> None:
    async with served(Endless()) as server:
        reader, writer, _ = await hello(server)
        writer.write(frame(PING, b"12345678") * 20)
        goodbye = await read_frame(reader, GOAWAY)
        assert int.from_bytes(goodbye[4:8]) == ENHANCE_YOUR_CALM
        writer.close()


@asynchronous
async def test_connections_above_the_bound_are_closed() -> None:
    async with served(Endless(), max_connections=2) as server:
        open_ones = [await hello(server) for _ in range(2)]
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await hello(server)
        for _, writer, _ in open_ones:
            writer.close()


async def drained(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:  # type: ignore[attr-defined]
        pass


@asynchronous
async def test_a_stream_that_nobody_reads_is_ended_and_freed() -> None:
    service = Endless()
    async with (
        served(service, read_timeout_s=0.2) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        call: Any = pb_grpc.LongContextStub(channel).ExportSession(pb.ExportSessionRequest())  # type: ignore[no-untyped-call]
        await call.read()
        await service.ended.wait()
        assert service.written < 1000, "what is unread is bounded"
        with pytest.raises(grpc.aio.AioRpcError, match="nothing was read for 0 s"):
            await drained(call)
