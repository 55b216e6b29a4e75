"""How long prefixes live in Redis, what becomes of damaged ones, and what a refused quota says."""

from __future__ import annotations

import asyncio
import logging

import pytest
import redis

from services.errors import QuotaExceeded, SessionCorrupt
from services.sessions import redis_segments
from swaa_runtime.errors import IntegrityError, InvalidRequest

from .builders import asynchronous, make_prefix, make_session
from .conftest import OpenStore

pytestmark = pytest.mark.redis


@asynchronous
async def test_finding_a_prefix_begins_its_life_anew(
    open_store: OpenStore, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_segments, "MARGIN_S", 0.2)
    cached = make_prefix()
    ids = [cached.prefix.prefix_id]
    async with open_store() as store:
        await store.save_prefix("acme", cached.prefix, cached.segments, 0.4)
        for _ in range(3):
            await asyncio.sleep(0.25)
            assert await store.find_prefix("acme", ids) == cached.prefix
        await asyncio.sleep(0.5)
        assert await store.find_prefix("acme", ids) is None
        assert await store.fetch("acme", cached.prefix.segments), "who has just found it has a little longer"
        await asyncio.sleep(0.2)
        assert await store.usage("acme") == 0
    assert raw.keys() == []


@asynchronous
async def test_a_search_is_one_round_trip(open_store: OpenStore, raw: redis.Redis) -> None:
    cached = make_prefix()
    async with open_store() as store:
        await store.save_prefix("acme", cached.prefix, cached.segments, 60.0)
        ids = [make_prefix(seed=seed).prefix.prefix_id for seed in range(1, 100)] * 50
        await store.find_prefix("acme", ids)
        raw.config_resetstat()
        assert await store.find_prefix("acme", [*ids, cached.prefix.prefix_id]) == cached.prefix
    calls = raw.info("commandstats")
    assert calls["cmdstat_evalsha"]["calls"] == 1
    assert "cmdstat_eval" not in calls


@asynchronous
async def test_a_damaged_prefix_is_deleted_and_skipped(
    open_store: OpenStore, raw: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    long, other, short = make_prefix(version=3), make_prefix(seed=8), make_prefix(seed=9)
    ids = [cached.prefix.prefix_id for cached in (long, other, short)]
    async with open_store() as store:
        for cached in (long, other, short):
            await store.save_prefix("acme", cached.prefix, cached.segments, 60.0)
        keys = [f"swaa:{{acme}}:prefix:{prefix_id}" for prefix_id in ids]
        raw.hset(keys[0], "data", b"damaged")
        raw.hset(keys[1], "data", raw.hget(keys[2], "data") or b"")
        with caplog.at_level(logging.WARNING):
            assert await store.find_prefix("acme", ids) == short.prefix
        assert [ids[0] in caplog.text, ids[1] in caplog.text, ids[2] in caplog.text] == [True, True, False]
        assert raw.exists(*keys) == 1
        await store.delete_prefixes("acme", ids)
    assert raw.keys() == []


@asynchronous
async def test_a_prefix_that_lost_a_segment_is_not_found_again(open_store: OpenStore, raw: redis.Redis) -> None:
    long, short = make_prefix(version=3), make_prefix(seed=8)
    ids = [long.prefix.prefix_id, short.prefix.prefix_id]
    async with open_store() as store:
        for cached in (long, short):
            await store.save_prefix("acme", cached.prefix, cached.segments, 60.0)
        key = "swaa:{acme}:segment:" + long.prefix.segments[1].segment_id
        raw.set(key, bytes(raw.strlen(key)))
        found = await store.find_prefix("acme", ids)
        assert found == long.prefix
        with pytest.raises(SessionCorrupt):
            await store.fetch("acme", found.segments)
        assert await store.find_prefix("acme", ids) == short.prefix
        assert raw.exists(f"swaa:{{acme}}:prefix:{ids[0]}") == 0
        await store.save_prefix("acme", long.prefix, long.segments, 60.0)
        assert await store.find_prefix("acme", ids) == long.prefix
        await store.delete_prefixes("acme", ids)
    assert raw.keys() == []


@asynchronous
async def test_prefix_ids_are_checked(open_store: OpenStore) -> None:
    async with open_store() as store:
        for bad in ("", "a:b", "{a}", "x" * 65):
            with pytest.raises(InvalidRequest):
                await store.find_prefix("acme", [bad])
            with pytest.raises(InvalidRequest):
                await store.delete_prefixes("acme", [bad])
        cached = make_prefix()
        with pytest.raises(IntegrityError):
            await store.save_prefix("acme", cached.prefix, {"0" * 32: b"unknown"}, 60.0)


@asynchronous
async def test_a_refused_quota_says_how_much_and_sends_nothing(open_store: OpenStore, raw: redis.Redis) -> None:
    small, big = make_session("small"), make_session("big", layers=500)
    async with open_store(quota_bytes=50_000) as store:
        await store.save("acme", small.manifest, small.segments, 0)
        used = await store.usage("acme")
        segments_bytes = big.manifest.segments[0].num_bytes
        with pytest.raises(QuotaExceeded) as caught:
            await store.save("acme", big.manifest, big.segments, 0)
    needed = int(str(caught.value).split("needs ")[1].split()[0])
    assert segments_bytes < needed < segments_bytes + 10_000
    assert str(caught.value) == (f"session:big needs {needed} bytes beside the {used} stored; the quota is 50000 bytes")
    assert not raw.exists("swaa:{acme}:segment:" + big.manifest.segments[0].segment_id)
