"""Where the gateway listens, and how it refuses to where it cannot."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from services.errors import SessionBusy
from services.gateway.auth.authenticator import Everybody
from services.gateway.errors import aborting
from services.gateway.server import GatewayServer
from services.gateway.service import _deadline_s
from services.pb.swaa.v1 import long_context_pb2_grpc as pb_grpc
from swaa_runtime.errors import DeadlineExceeded, InvalidRequest

from .builders import FakeContext


def make_server(listen: str) -> GatewayServer:
    service: Any = pb_grpc.LongContextServicer()
    return GatewayServer(service, Everybody(), listen)


def test_a_port_has_one_owner() -> None:
    async def run() -> None:
        first = make_server("127.0.0.1:0")
        await first.start()
        try:
            with pytest.raises(InvalidRequest, match=f"listen is '127.0.0.1:{first.port}': cannot be listened on"):
                make_server(f"127.0.0.1:{first.port}")
        finally:
            await first.stop(0)
        second = make_server(f"127.0.0.1:{first.port}")
        await second.start()
        await second.stop(0)

    asyncio.run(run())


@pytest.mark.parametrize("listen", ["", "nowhere", "127.0.0.1:port", "256.0.0.1:0"])
def test_an_address_that_is_none_is_refused(listen: str) -> None:
    async def run() -> None:
        make_server(listen)

    with pytest.raises(InvalidRequest, match="listen is"):
        asyncio.run(run())


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str] | None:
    context: Any = FakeContext()

    async def run() -> None:
        async with aborting(context):
            raise error

    with pytest.raises((grpc.aio.AbortError, type(error))):
        asyncio.run(run())
    status: tuple[grpc.StatusCode, str] | None = context.status
    return status


def test_errors_become_statuses() -> None:
    assert status_of(SessionBusy("in use")) == (grpc.StatusCode.ABORTED, "in use")
    assert status_of(InvalidRequest("f", 1, "b")) == (grpc.StatusCode.INVALID_ARGUMENT, "f is 1: b")
    code, details = status_of(ValueError("a secret of ours")) or (None, "")
    assert code is grpc.StatusCode.INTERNAL
    assert details == "unexpected ValueError; see the server's log"
    assert status_of(asyncio.CancelledError()) is None
    assert status_of(grpc.aio.AbortError()) is None


def test_deadlines() -> None:
    none, soon, past = (FakeContext(remaining_s) for remaining_s in (None, 5.0, 0.0))
    assert _deadline_s(none) is None  # type: ignore[arg-type]
    deadline_s = _deadline_s(soon)  # type: ignore[arg-type]
    assert deadline_s is not None
    with pytest.raises(DeadlineExceeded, match="had passed when the request arrived"):
        _deadline_s(past)  # type: ignore[arg-type]
