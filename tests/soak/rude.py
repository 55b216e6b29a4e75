"""Rude clients: they cancel, hang up, dawdle, send halves, die. The service owes them nothing, and loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

import grpc

from services.client import NO_RETRY, AsyncClient, TurnOptions
from services.client.errors import Busy, DeadlineExceeded, InvalidRequest, NotFound
from services.pb.swaa.v1 import long_context_pb2 as pb
from tests.soak.turns import completion, open_session, pieces
from tests.soak.world import CALL_TIMEOUT_S, World

READ_DELAY_S = 0.15
VICTIM_START_S = 180.0


async def cancel(world: World) -> str:
    """Goes away in mid-answer, maybe of a session's turn: nobody knows then whether that was saved."""
    session = world.some_session() if world.rng.random() < 0.5 else None
    with world.claimed(session or ""):
        num_tokens = world.rng.randint(0, world.sizes.answer_tokens[1] // 2)
        async with world.client.stream(world.prompt(), session=session, **world.options()) as stream:
            async for _ in stream:
                num_tokens -= 1
                if num_tokens < 0:
                    return "gone"
    return "ended first"


async def deadline(world: World) -> str:
    """Has little time, while it waits, reads its prompt or answers."""
    options: TurnOptions = {**world.options(), "timeout_s": world.rng.uniform(0.02, 1.5)}
    try:
        await world.client.generate(world.prompt(), **options)
    except DeadlineExceeded:
        return "late"
    return "in time"


async def hang_up(world: World) -> str:
    """Closes its connection with calls on it."""
    async with AsyncClient(world.target.grpc, retry=NO_RETRY, metadata=world.target.metadata) as client:
        streams = [client.stream(world.prompt(), **world.options()) for _ in range(2)]
        readers = [asyncio.ensure_future(anext(stream)) for stream in streams]
        await asyncio.wait(readers, timeout=world.rng.uniform(0.1, 2.0), return_when=asyncio.FIRST_COMPLETED)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    return "gone"


async def half_upload(world: World) -> str:
    """Sends some of its prompt, and no more."""
    call = world.stub.GenerateUpload(metadata=world.target.metadata, timeout=CALL_TIMEOUT_S)
    for piece in pieces(world)[: world.rng.randint(1, 3)]:
        await call.write(piece)
    await asyncio.sleep(world.rng.uniform(0.0, 0.5))
    call.cancel()
    return "gone"


async def half_import(world: World) -> str:
    """Sends what looks like a session's file, cut short."""
    call = world.stub.ImportSession(metadata=world.target.metadata, timeout=CALL_TIMEOUT_S)
    await call.write(pb.ImportSessionRequest(chunk=b"SWAASESS\x02" + bytes(8)))
    if world.rng.random() < 0.5:
        call.cancel()
        return "gone"
    await call.done_writing()
    with contextlib.suppress(grpc.aio.AioRpcError):
        await call
    return call_status(await call.code(), grpc.StatusCode.DATA_LOSS)


async def half_body(world: World) -> str:
    """Announces an HTTP body, sends a part of it, and hangs up."""
    host, _, port = world.target.http.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    lines = ("POST /v1/completions HTTP/1.1", "host: soak", "content-type: application/json", "content-length: 100000")
    head = "".join(f"{line}\r\n" for line in lines) + "\r\n"
    writer.write(head.encode() + b'{"model": "smollm2", "prompt": [1, 2, ')
    await writer.drain()
    await asyncio.sleep(world.rng.uniform(0.0, 0.5))
    if world.rng.random() < 0.5:  # a reset instead of an end
        sock: socket.socket = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return "gone"


async def http_hang_up(world: World) -> str:
    """Goes away in the middle of a stream over HTTP."""
    body = {**completion(world), "stream": True}
    async with world.http.stream("POST", "/v1/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: ") and world.rng.random() < 0.3:
                return "gone"
    return "ended first"


async def slow_reader(world: World) -> str:
    """Reads its answer slower than it is written."""
    prompt = world.prompt()
    async with world.client.stream(prompt, **world.options()) as stream:
        async for _ in stream:
            await asyncio.sleep(READ_DELAY_S)
        return world.note(prompt, await stream.answer(), None)


async def two_at_once(world: World) -> str:
    """Two turns of one session at the same time: one of them is told so, or they come one after the other."""
    session = world.some_session()
    if session is None:
        return await open_session(world)
    with world.claimed(session):
        prompts = [world.prompt(at_most=world.sizes.prompt_tokens[0]) for _ in range(2)]
        turns = [world.client.generate(prompt, session=session, **world.options()) for prompt in prompts]
        refused = 0
        for prompt, answer in zip(prompts, await asyncio.gather(*turns, return_exceptions=True), strict=True):
            if isinstance(answer, Busy):
                refused += 1
            elif isinstance(answer, BaseException):
                raise answer
            else:
                world.note(prompt, answer, session)
    return f"{refused} refused"


async def wrong(world: World) -> str:
    """Asks for what there is not."""
    for refusal, call in (
        (InvalidRequest, world.client.generate([1 << 20], **world.options())),
        (InvalidRequest, world.client.generate(world.prompt(), recipe="no-such")),
        (NotFound, world.client.generate(world.prompt(), session="0" * 32)),
    ):
        try:
            await call
        except refusal:
            continue
        raise AssertionError(f"{refusal.__name__} did not come")
    return "refused"


async def killed(world: World) -> str:
    """A process with streams open, one of them half an upload, that gets SIGKILL."""
    victim = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.soak.victim", world.target.grpc, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert victim.stdout is not None
        async with asyncio.timeout(VICTIM_START_S):
            await victim.stdout.readline()
        await asyncio.sleep(world.rng.uniform(0.0, 0.5))
    finally:
        victim.kill()
        await victim.wait()
    return "killed"


def call_status(code: grpc.StatusCode, expected: grpc.StatusCode) -> str:
    """How a call ended, if that is as expected."""
    if code is not expected:
        raise AssertionError(f"ended with {code.name}, not {expected.name}")
    return code.name
