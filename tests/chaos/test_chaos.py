"""Faults of the way to Redis, under a load on one small service: the same code as `make chaos`, without a cluster."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.sessions.embedded_redis import EmbeddedRedis
from tests.chaos.faults import Victims, redis_cut, redis_killed
from tests.chaos.link import Link
from tests.chaos.run import Plan, Watched, chaos
from tests.soak.service import served

pytestmark = [pytest.mark.model, pytest.mark.redis]

PLAN = Plan(faults=(redis_killed, redis_cut), before_s=0.5, after_s=0.5, checked=4, seed=0)


@pytest.fixture
def redis(folder: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(folder / "redis") as server:
        yield server


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a path short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="swaa-chaos-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def test_what_was_acknowledged_is_kept(folder: Path, redis: EmbeddedRedis, tiny_folder: Path) -> None:
    lines, cache = list[str](), str(tiny_folder.parent)
    with Link(redis.socket_path) as link:
        store = {"redis_url": f"redis://127.0.0.1:{link.port}/0"}
        settings = {"model": str(tiny_folder), "dtype": "float32", "kv_memory_mib": "16", "cache_dir": cache, **store}
        with served(folder, settings) as (soaked, text):
            victims = Victims(redis, link, list, None, 0, random.Random(0))
            watched = Watched(victims, [soaked.target], soaked.oracle, soaked.decode)
            held = asyncio.run(chaos(watched, PLAN, text, lines.append))
    assert held, "\n".join(lines)
    figures = json.loads(lines[-1])
    assert figures["saved_turns"] > 0
    assert figures["oracle_checked"] > 0
    assert figures["inflicted"] == ["redis_killed", "redis_cut"]


@pytest.fixture
def echo(folder: Path) -> Iterator[Path]:
    """A server on a Unix socket that says what it is told."""
    path = folder / "echo"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(100):
            writer.write(piece)
        writer.close()

    ready, stopping = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        async with await asyncio.start_unix_server(serve, path):
            ready.set()
            await stopping.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    ready.wait()
    yield path
    loops[0].call_soon_threadsafe(stopping.set)
    thread.join()


def test_a_link_passes_swallows_and_resets(echo: Path) -> None:
    with Link(echo) as link, socket.create_connection(("127.0.0.1", link.port), timeout=10) as client:
        client.sendall(b"one")
        assert client.recv(10) == b"one"
        link.set("hole")
        client.sendall(b"two")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(10)
        client.settimeout(10)
        link.set("pass")
        assert client.recv(10) == b"two"
        link.set("cut")
        with pytest.raises(ConnectionResetError):
            client.recv(10)
