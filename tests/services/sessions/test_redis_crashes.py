"""Writers that die or race: what is read is always one whole turn, the last or the one before."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import signal
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
import redis

from services.errors import SessionNotFound, StaleSession
from services.sessions.codec import segment_id
from services.sessions.embedded_redis import EmbeddedRedis
from services.sessions.redis_segments import UPLOAD_TTL_S, RedisSegments
from services.sessions.redis_store import RedisSessionStore

from . import writer
from .builders import asynchronous, make_manifest
from .conftest import OpenStore

pytestmark = pytest.mark.redis

NUM_KILLS = 200
NUM_RACES = 1000


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Starts processes that have everything imported already, in milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", writer.__name__])  # each imports the main script, which is pytest's
    return context


def start(processes: ForkServerContext, *args: Any, **kwargs: Any) -> tuple[BaseProcess, Connection]:
    """A writer that is about to begin its save, and what it says of it."""
    ready, theirs = processes.Pipe(duplex=False)
    process = processes.Process(target=writer.save, args=(*args, theirs), kwargs=kwargs)
    process.start()
    theirs.close()
    ready.recv_bytes()
    return process, ready


async def read_version(store: RedisSessionStore, session_id: str) -> int:
    """The version of the session, which is whole; 0 if there is none."""
    try:
        manifest = await store.get("acme", session_id)
    except SessionNotFound:
        return 0
    blobs = await store.fetch("acme", manifest.segments)
    assert blobs == list(writer.segments_of(session_id, manifest.version).values())
    return manifest.version


def save_duration_s(processes: ForkServerContext, url: str) -> float:
    durations_s: list[float] = []
    for number in range(5):
        process, ready = start(processes, url, f"timed-{number}", 1)
        durations_s.append(ready.recv())
        process.join()
        ready.close()
    return sorted(durations_s)[len(durations_s) // 2]


@asynchronous
async def test_a_writer_killed_at_any_moment_leaves_a_whole_turn(
    server: EmbeddedRedis, open_store: OpenStore, raw: redis.Redis, processes: ForkServerContext
) -> None:
    typical_s = save_duration_s(processes, server.url)
    raw.flushall()
    delays = random.Random(20251125)
    outcomes = {True: 0, False: 0}
    async with open_store() as store:
        for number in range(NUM_KILLS):
            session_id = "chat" if number % 2 else f"new-{number}"
            before = await read_version(store, session_id)
            process, ready = start(processes, server.url, session_id, before + 1)
            await asyncio.sleep(delays.uniform(0.0, 1.3 * typical_s))
            process.kill()
            process.join()
            ready.close()
            after = await read_version(store, session_id)
            assert after in (before, before + 1)
            outcomes[after > before] += 1
        assert min(outcomes.values()) > NUM_KILLS // 20, "some were killed before their commit, some after"
        sessions = await store.list_sessions("acme", NUM_KILLS)
        used = {ref.segment_id: ref.num_bytes for manifest in sessions for ref in manifest.segments}
        manifests = sum(raw.hstrlen(f"swaa:{{acme}}:session:{manifest.session_id}", "data") for manifest in sessions)
        assert await store.usage("acme") == sum(used.values()) + manifests
    for key in raw.scan_iter("swaa:{acme}:segment:*"):
        assert key.rpartition(b":")[2].decode() in used or raw.ttl(key) <= UPLOAD_TTL_S, "what nobody names goes soon"


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("deadly_uploads", [0, 1, writer.NUM_NEW_SEGMENTS - 1, writer.NUM_SEGMENTS])
@asynchronous
async def test_a_writer_killed_between_upload_and_commit_leaves_the_turn_before(
    server: EmbeddedRedis, open_store: OpenStore, processes: ForkServerContext, version: int, deadly_uploads: int
) -> None:
    async with open_store() as store:
        for earlier in range(1, version):
            segments = writer.segments_of("chat", earlier)
            await store.save("acme", make_manifest("chat", earlier, segments), segments, earlier - 1)
        used = await store.usage("acme")
        process, ready = start(processes, server.url, "chat", version, deadly_uploads=deadly_uploads)
        process.join()
        ready.close()
        assert process.exitcode == -signal.SIGKILL
        assert await read_version(store, "chat") == version - 1
        assert await store.usage("acme") == used
        segments = writer.segments_of("chat", version)
        await store.save("acme", make_manifest("chat", version, segments), segments, version - 1)
        assert await read_version(store, "chat") == version


def small_turn(version: int, text: str) -> tuple[dict[str, bytes], Any]:
    blob = f"{version} {text}".encode()
    segments = {segment_id(blob): blob}
    return segments, make_manifest("chat", version, segments)


@asynchronous
async def test_of_two_writers_exactly_one_wins(open_store: OpenStore) -> None:
    delays = random.Random(7)
    wins = [0, 0]
    async with open_store() as one, open_store() as two:

        async def write(store: RedisSessionStore, version: int, text: str) -> bool:
            segments, manifest = small_turn(version, text)
            await asyncio.sleep(delays.uniform(0.0, 0.0005))
            try:
                await store.save("acme", manifest, segments, version - 1)
            except StaleSession:
                return False
            return True

        for version in range(1, NUM_RACES + 1):
            won = await asyncio.gather(write(one, version, "one"), write(two, version, "two"))
            assert sum(won) == 1
            wins[won.index(True)] += 1
        manifest = await one.get("acme", "chat")
        assert manifest.version == NUM_RACES
        assert await one.fetch("acme", manifest.segments)
    assert min(wins) > 0


@asynchronous
async def test_a_writer_whose_lease_was_taken_over_always_loses(open_store: OpenStore, raw: redis.Redis) -> None:
    async with open_store() as one, open_store() as two:
        for version in range(1, NUM_RACES // 4 + 1):
            old = await one.acquire("acme", "chat", f"one-{version}")
            raw.delete("swaa:{acme}:lease:chat")  # it ran out
            new = await two.acquire("acme", "chat", f"two-{version}")
            assert new > old
            late, now = small_turn(version, "one"), small_turn(version, "two")
            results = await asyncio.gather(
                one.save("acme", late[1], late[0], version - 1, old),
                two.save("acme", now[1], now[0], version - 1, new),
                return_exceptions=True,
            )
            assert isinstance(results[0], StaleSession)
            assert results[1] is None
            assert (await one.get("acme", "chat")).segments == now[1].segments
            await two.release("acme", "chat", f"two-{version}")


@asynchronous
async def test_a_lease_taken_over_in_the_middle_of_a_save_stops_it(
    open_store: OpenStore, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments, manifest = small_turn(1, "one")
    async with open_store() as one, open_store() as two:
        fence = await one.acquire("acme", "chat", "one")
        upload = RedisSegments.upload

        async def upload_then_lose_the_lease(*args: Any) -> None:
            await upload(*args)
            raw.delete("swaa:{acme}:lease:chat")
            await two.acquire("acme", "chat", "two")

        monkeypatch.setattr(RedisSegments, "upload", upload_then_lose_the_lease)
        with pytest.raises(StaleSession, match="somebody else took its lease"):
            await one.save("acme", manifest, segments, 0, fence)
        with pytest.raises(SessionNotFound):
            await one.get("acme", "chat")
