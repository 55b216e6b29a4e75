"""Redis that is away, dying, full, slow or refusing: a clear error in bounded time, and the last good turn after it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
import redis
from redis.asyncio import Redis

from services.errors import SessionNotFound, StoreUnavailable
from services.sessions.embedded_redis import EmbeddedRedis
from services.sessions.redis_store import RedisSessionStore

from .builders import asynchronous, make_prefix, make_session
from .conftest import OpenStore, store_opener
from .servers import until

pytestmark = pytest.mark.redis


async def call_everything(store: RedisSessionStore, why: str) -> None:
    """Each method raises StoreUnavailable that says why, soon."""
    saved, cached = make_session(), make_prefix()
    for call in (
        lambda: store.ping(),
        lambda: store.get("acme", "chat"),
        lambda: store.list_sessions("acme", 5),
        lambda: store.fetch("acme", saved.manifest.segments),
        lambda: store.save("acme", saved.manifest, saved.segments, 0),
        lambda: store.fork("acme", "chat", "copy"),
        lambda: store.delete("acme", "chat"),
        lambda: store.acquire("acme", "chat", "one"),
        lambda: store.renew("acme", "chat", "one"),
        lambda: store.release("acme", "chat", "one"),
        lambda: store.usage("acme"),
        lambda: store.find_prefix("acme", [cached.prefix.prefix_id]),
        lambda: store.save_prefix("acme", cached.prefix, cached.segments, 60.0),
        lambda: store.delete_prefixes("acme", [cached.prefix.prefix_id]),
    ):
        begin_s = time.monotonic()
        with pytest.raises(StoreUnavailable, match=f"session store: {why}") as caught:
            await call()
        assert caught.value.__cause__ is not None
        assert time.monotonic() - begin_s < 3.0


@asynchronous
async def test_a_server_that_is_away(tmp_path: Path) -> None:
    store = RedisSessionStore.from_url(f"unix://{tmp_path}/nothing.sock", 60, timeout_s=1.0)
    await call_everything(store, "cannot be reached")
    await store.close()


@asynchronous
async def test_a_server_that_goes_away_and_comes_back(private_server: EmbeddedRedis) -> None:
    store = RedisSessionStore.from_url(private_server.url, 60, timeout_s=1.0)
    saved = make_session()
    await store.save("acme", saved.manifest, saved.segments, 0)
    await asyncio.to_thread(private_server.stop)
    await call_everything(store, "cannot be reached")
    await asyncio.to_thread(private_server.start)
    assert (await store.get("acme", "chat")).version == 1
    await store.close()


@asynchronous
async def test_a_server_that_hangs(private_server: EmbeddedRedis) -> None:
    store = RedisSessionStore(Redis.from_url(private_server.url, socket_timeout=None), 60, timeout_s=0.2)
    saved = make_session()
    async with store_opener(private_server)() as patient:
        await patient.save("acme", saved.manifest, saved.segments, 0)
    with redis.Redis.from_url(private_server.url) as raw:
        pid = raw.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        await call_everything(store, "no answer in 0.2 s")
        later = make_session(version=2)
        with pytest.raises(StoreUnavailable):
            await store.save("acme", later.manifest, later.segments, 1)
    finally:
        os.kill(pid, signal.SIGCONT)
    await store.close()


@asynchronous
async def test_a_server_killed_in_the_middle_of_a_save_keeps_the_last_good_turn(private_server: EmbeddedRedis) -> None:
    first, second = make_session(version=1, layers=2000), make_session(version=2, layers=20_000)  # 0.5 and 10 MB
    open_store = store_opener(private_server)
    async with open_store(timeout_s=1.0) as store:
        await store.save("acme", first.manifest, first.segments, 0)
    for delay_s in (0.0, 0.001, 0.003, 0.01, 0.03, 0.1):
        async with open_store(timeout_s=1.0) as store:
            version = (await store.get("acme", "chat")).version
            if version == 1:
                saving = asyncio.create_task(store.save("acme", second.manifest, second.segments, 1))
                await asyncio.sleep(delay_s)
            await asyncio.to_thread(private_server.kill)
            if version == 1:
                try:
                    await saving
                    version = 2  # it was acknowledged, so it must be there
                except StoreUnavailable:
                    pass
        await asyncio.to_thread(private_server.start)
        await check_good_turn(open_store, version)


async def check_good_turn(open_store: OpenStore, at_least: int) -> None:
    async with open_store() as store:
        manifest = await store.get("acme", "chat")
        assert manifest.version >= at_least
        assert len(await store.fetch("acme", manifest.segments)) == len(manifest.segments)


@asynchronous
async def test_a_full_server_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path, max_memory_bytes=8 << 20) as server:
        async with store_opener(server)() as store:
            small, big, cached = make_session("small"), make_session("big", layers=40_000), make_prefix(seed=3)
            await store.save("acme", small.manifest, small.segments, 0)
            await store.save_prefix("acme", cached.prefix, cached.segments, 60.0)
            for _ in range(2):  # the first may go over the bound by one segment, the second finds it reached
                with contextlib.suppress(StoreUnavailable):
                    await store.save("acme", big.manifest, big.segments, 0)
            later, other = make_session("small", version=2), make_prefix(seed=4)
            for call in (
                lambda: store.save("acme", later.manifest, later.segments, 1),
                lambda: store.fork("acme", "small", "more"),
                lambda: store.save_prefix("acme", other.prefix, other.segments, 60.0),
                lambda: store.acquire("acme", "small", "one"),
            ):
                with pytest.raises(StoreUnavailable, match="session store: its memory is full"):
                    await call()
            with pytest.raises(SessionNotFound):
                await store.get("acme", "more")
            assert (await store.get("acme", "small")).version == 1
            assert await store.fetch("acme", small.manifest.segments)
            assert await store.find_prefix("acme", [cached.prefix.prefix_id]) == cached.prefix
            used = await store.usage("acme")
            await store.delete_prefixes("acme", [cached.prefix.prefix_id])
            await store.delete("acme", "small")
            assert await store.usage("acme") < used


@asynchronous
async def test_a_read_only_server_refuses(open_store: OpenStore, raw: redis.Redis) -> None:
    first, second, cached = make_session(), make_session(version=2), make_prefix(seed=3)
    async with open_store() as store:
        await store.save("acme", first.manifest, first.segments, 0)
        await store.save_prefix("acme", cached.prefix, cached.segments, 60.0)
        raw.replicaof("127.0.0.1", "1")
        try:
            for call in (
                lambda: store.delete("acme", "chat"),
                lambda: store.save("acme", second.manifest, second.segments, 1),
                lambda: store.fork("acme", "chat", "copy"),
                lambda: store.acquire("acme", "chat", "one"),
                lambda: store.find_prefix("acme", [cached.prefix.prefix_id]),
                lambda: store.save_prefix("acme", cached.prefix, {}, 60.0),
                lambda: store.delete_prefixes("acme", [cached.prefix.prefix_id]),
            ):
                with pytest.raises(StoreUnavailable, match="session store: it is read only"):
                    await call()
                # The store connects anew at its next call: the name may mean another server by then.
                await asyncio.to_thread(until, lambda: len(raw.client_list()) == 1)
            assert (await store.get("acme", "chat")).version == 1
            assert await store.fetch("acme", first.manifest.segments)
            assert await store.usage("acme") > 0
        finally:
            raw.replicaof("NO", "ONE")
        await store.save("acme", second.manifest, second.segments, 1)


@asynchronous
async def test_scripts_are_loaded_again_after_a_restart(private_server: EmbeddedRedis) -> None:
    async with store_opener(private_server)() as store:
        saved = make_session()
        await store.save("acme", saved.manifest, saved.segments, 0)
        with redis.Redis.from_url(private_server.url) as raw:
            raw.script_flush()
        await store.delete("acme", "chat")


@asynchronous
async def test_a_cancelled_call_leaves_the_store_usable(open_store: OpenStore) -> None:
    saved = make_session(layers=5000)
    async with open_store() as store:
        await store.save("acme", saved.manifest, saved.segments, 0)
        for delay_s in (0.0, 0.0005, 0.001, 0.002, 0.004):
            fetching = asyncio.create_task(store.fetch("acme", saved.manifest.segments))
            await asyncio.sleep(delay_s)
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)
            assert (await store.get("acme", "chat")).token_ids == saved.manifest.token_ids
