"""What Redis holds after each step, what the store says of damage, and how long things live."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import redis

from services.errors import SessionBusy, SessionCorrupt, SessionExpired, SessionNotFound, StaleSession
from services.sessions import redis_segments
from services.sessions.redis_segments import RedisSegments
from swaa_runtime.errors import IntegrityError, InvalidRequest

from .builders import asynchronous, make_session
from .conftest import OpenStore

pytestmark = pytest.mark.redis


def segment_keys(raw: redis.Redis) -> set[bytes | str]:
    return {*raw.keys("swaa:{acme}:segment:*"), *raw.keys("swaa:{acme}:users:*")}


@asynchronous
async def test_saving_a_turn_writes_only_what_it_added(open_store: OpenStore, raw: redis.Redis) -> None:
    first, second = make_session(version=3), make_session(version=4)
    async with open_store() as store:
        for version in (1, 2):
            earlier = make_session(version=version)
            await store.save("acme", earlier.manifest, earlier.segments, version - 1)
        await store.save("acme", first.manifest, first.segments, 2)
        raw.config_resetstat()
        await store.save("acme", second.manifest, second.segments, 3)
    assert raw.info("commandstats")["cmdstat_set"]["calls"] == 2  # the completed segment of turn 3, and turn 4's
    assert len(segment_keys(raw)) == 2 * 4, "the last version's segments, no longer the half-full ones before them"


@asynchronous
async def test_forks_share_their_segments(open_store: OpenStore, raw: redis.Redis) -> None:
    saved = make_session(layers=2000)  # 480 kB
    async with open_store() as store:
        await store.save("acme", saved.manifest, saved.segments, 0)
        one = raw.info("memory")["used_memory"]
        for number in range(10):
            await store.fork("acme", "chat", f"copy-{number}")
        assert raw.info("memory")["used_memory"] < one + 300_000

        for session_id in ["chat", *(f"copy-{number}" for number in range(9))]:
            await store.delete("acme", session_id)
        assert await store.fetch("acme", (await store.get("acme", "copy-9")).segments)
        await store.delete("acme", "copy-9")
    assert raw.keys() == []


@asynchronous
async def test_sessions_that_happen_to_be_equal_share_segments_too(open_store: OpenStore, raw: redis.Redis) -> None:
    one, two = make_session("one"), make_session("two")
    async with open_store() as store:
        await store.save("acme", one.manifest, one.segments, 0)
        await store.save("acme", two.manifest, two.segments, 0)
        assert len(segment_keys(raw)) == 2
        await store.delete("acme", "one")
        assert await store.fetch("acme", two.manifest.segments)


@asynchronous
async def test_a_segment_deleted_between_upload_and_commit_is_sent_again(
    open_store: OpenStore, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = make_session()
    async with open_store() as store:
        upload, uploads = RedisSegments.upload, 0

        async def upload_then_lose(*args: Any) -> None:
            nonlocal uploads
            await upload(*args)
            uploads += 1
            if uploads == 1:
                raw.delete(*raw.keys("*:segment:*"))

        monkeypatch.setattr(RedisSegments, "upload", upload_then_lose)
        await store.save("acme", saved.manifest, saved.segments, 0)
        assert uploads == 2
        assert await store.fetch("acme", saved.manifest.segments)


@asynchronous
async def test_a_writer_that_comes_too_late_does_not_shorten_what_it_shares(
    open_store: OpenStore, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = make_session()
    async with open_store() as store, open_store() as late:
        upload = RedisSegments.upload

        async def upload_after_the_other(*args: Any) -> None:
            monkeypatch.setattr(RedisSegments, "upload", upload)
            await store.save("acme", saved.manifest, saved.segments, 0)
            await upload(*args)

        monkeypatch.setattr(RedisSegments, "upload", upload_after_the_other)
        with pytest.raises(StaleSession):
            await late.save("acme", replace(saved.manifest, recipe_name="other"), saved.segments, 0)
    assert raw.ttl("swaa:{acme}:segment:" + saved.manifest.segments[0].segment_id) > 3600


@asynchronous
async def test_a_save_that_is_sent_twice_is_saved_once(open_store: OpenStore) -> None:
    """A client that lost the answer sends again: that is no stale writer."""
    saved = make_session()
    async with open_store(clock=lambda: 1000.0) as store:
        await store.save("acme", saved.manifest, saved.segments, 0)
        await store.save("acme", saved.manifest, saved.segments, 0)
        assert (await store.get("acme", "chat")).version == 1


@asynchronous
async def test_a_writer_that_stops_before_the_manifest_leaves_the_last_turn(
    open_store: OpenStore, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_session(version=1), make_session(version=2)
    async with open_store() as store:
        await store.save("acme", first.manifest, first.segments, 0)
        upload = RedisSegments.upload

        async def upload_then_die(*args: Any) -> None:
            await upload(*args)
            raise asyncio.CancelledError

        monkeypatch.setattr(RedisSegments, "upload", upload_then_die)
        with pytest.raises(asyncio.CancelledError):
            await store.save("acme", second.manifest, second.segments, 1)

        assert (await store.get("acme", "chat")).version == 1
        assert await store.fetch("acme", first.manifest.segments)
        for digest in second.segments.keys() - first.segments.keys():
            assert 0 < raw.ttl("swaa:{acme}:segment:" + digest) <= redis_segments.UPLOAD_TTL_S


@asynchronous
async def test_damaged_segments_are_named(open_store: OpenStore, raw: redis.Redis) -> None:
    saved = make_session(version=2)
    first, second = saved.manifest.segments
    key = "swaa:{acme}:segment:" + first.segment_id
    async with open_store() as store:
        await store.save("acme", make_session().manifest, make_session().segments, 0)
        await store.save("acme", saved.manifest, saved.segments, 1)
        good = bytes(saved.segments[first.segment_id])
        swapped = bytes(saved.segments[second.segment_id])
        flipped = bytes([good[0] ^ 1]) + good[1:]
        for damage in (good[:-1], good + b"\0", b"", flipped, swapped, bytes(len(good))):
            raw.set(key, damage)
            with pytest.raises(SessionCorrupt, match=first.segment_id):
                await store.fetch("acme", saved.manifest.segments)
        assert not raw.exists(key), "what was found wrong is away, so that a recomputed turn can save it again"
        with pytest.raises(SessionCorrupt, match=first.segment_id):
            await store.fetch("acme", saved.manifest.segments)
        with pytest.raises(SessionCorrupt, match=first.segment_id):
            await store.fork("acme", "chat", "copy")
        assert (await store.get("acme", "chat")).token_ids, "the tokens are still there to recompute from"

        again = make_session(version=3)
        await store.save("acme", again.manifest, again.segments, 2)
        assert await store.fetch("acme", again.manifest.segments)


@asynchronous
async def test_a_segment_saved_again_since_it_was_read_damaged_stays(
    open_store: OpenStore, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = make_session()
    digest, good = next(iter(saved.segments.items()))
    find_wrong = redis_segments._first_wrong

    def find_wrong_while_it_is_mended(*args: Any) -> str | None:
        wrong = find_wrong(*args)
        raw.set("swaa:{acme}:segment:" + digest, bytes(good), keepttl=True)
        return wrong

    monkeypatch.setattr(redis_segments, "_first_wrong", find_wrong_while_it_is_mended)
    async with open_store() as store:
        await store.save("acme", saved.manifest, saved.segments, 0)
        used = await store.usage("acme")
        raw.set("swaa:{acme}:segment:" + digest, b"damaged", keepttl=True)
        with pytest.raises(SessionCorrupt, match=digest):
            await store.fetch("acme", saved.manifest.segments)
        assert await store.fetch("acme", saved.manifest.segments) == [bytes(data) for data in saved.segments.values()]
        assert await store.usage("acme") == used


@asynchronous
async def test_a_lost_segment_counts_no_more_until_it_is_saved_again(open_store: OpenStore, raw: redis.Redis) -> None:
    first = make_session(version=2)
    async with open_store() as store:
        for saved in (make_session(), first):
            await store.save("acme", saved.manifest, saved.segments, saved.manifest.version - 1)
        used, lost = await store.usage("acme"), first.manifest.segments[0]
        raw.delete("swaa:{acme}:segment:" + lost.segment_id)
        with pytest.raises(SessionCorrupt, match=lost.segment_id):
            await store.fetch("acme", first.manifest.segments)
        assert await store.usage("acme") == used - lost.num_bytes
        for version in (1, 2):
            saved = make_session("other", version=version)
            await store.save("acme", saved.manifest, saved.segments, version - 1)
        assert await store.fetch("acme", first.manifest.segments), "whose it was has it again"
        await store.delete("acme", "other")
        assert await store.usage("acme") == used
        assert await store.fetch("acme", first.manifest.segments)


@asynchronous
async def test_a_damaged_manifest_is_corrupt_and_can_be_deleted(open_store: OpenStore, raw: redis.Redis) -> None:
    async with open_store() as store:
        for session_id in ("chat", "other"):
            saved = make_session(session_id)
            await store.save("acme", saved.manifest, saved.segments, 0)
        key = "swaa:{acme}:session:chat"
        good, other = raw.hget(key, "data"), raw.hget("swaa:{acme}:session:other", "data")
        assert isinstance(good, bytes)
        assert isinstance(other, bytes)
        for damage in (b"", good[:-1], good + b"\0", other):
            raw.hset(key, "data", damage)
            with pytest.raises(SessionCorrupt, match="chat"):
                await store.get("acme", "chat")
        assert [manifest.session_id for manifest in await store.list_sessions("acme", 9)] == ["other"]
        raw.hset(key, mapping={"data": good, "version": 7})
        with pytest.raises(SessionCorrupt, match="chat"):
            await store.get("acme", "chat")
        await store.delete("acme", "chat")
        await store.delete("acme", "other")
    assert raw.keys() == []


@asynchronous
async def test_lifetimes(open_store: OpenStore, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_segments, "MARGIN_S", 0.2)
    saved = make_session()
    async with open_store(ttl_s=1.0) as store:
        await store.save("acme", saved.manifest, saved.segments, 0)
        await store.fork("acme", "chat", "copy")
        await asyncio.sleep(1.05)
        with pytest.raises(SessionExpired, match=r"chat.* expired at \d{4}-\d\d-\d\dT"):
            await store.get("acme", "chat")
        assert await store.fetch("acme", saved.manifest.segments), "who has just read the manifest has a little longer"
        await asyncio.sleep(0.3)
        assert segment_keys(raw) == set()
        assert raw.zcard("swaa:{acme}:index") == 2
        assert await store.list_sessions("acme", 9) == []
        assert raw.zcard("swaa:{acme}:index") == 0
        await asyncio.sleep(0.8)
        with pytest.raises(SessionNotFound) as caught:
            await store.get("acme", "chat")
        assert not isinstance(caught.value, SessionExpired)
    assert raw.keys() == []


@asynchronous
async def test_saving_prolongs_all_segments_and_a_fork_never_shortens_them(
    open_store: OpenStore, raw: redis.Redis
) -> None:
    async with open_store(ttl_s=10) as store, open_store(ttl_s=10_000) as longer, open_store(ttl_s=100) as shorter:
        for version in (1, 2):
            saved = make_session(version=version)
            await store.save("acme", saved.manifest, saved.segments, version - 1)
        kept = "swaa:{acme}:segment:" + saved.manifest.segments[0].segment_id
        assert raw.ttl(kept) < 10_000
        later = make_session(version=3)
        await longer.save("acme", later.manifest, later.segments, 2)
        assert raw.ttl(kept) > 10_000
        await shorter.fork("acme", "chat", "copy")
        assert raw.ttl(kept) > 10_000
        assert all(raw.ttl(key) > 0 for key in raw.scan_iter()), "nothing lives for ever"


@asynchronous
async def test_a_lease_runs_out_unless_it_is_renewed(open_store: OpenStore) -> None:
    async with open_store(lease_ttl_ms=300) as store:
        fence = await store.acquire("acme", "chat", "one")
        for _ in range(4):
            await asyncio.sleep(0.15)
            await store.renew("acme", "chat", "one")
        with pytest.raises(SessionBusy):
            await store.acquire("acme", "chat", "two")
        await asyncio.sleep(0.4)
        assert await store.acquire("acme", "chat", "two") > fence
        with pytest.raises(SessionBusy):
            await store.renew("acme", "chat", "one")
        await store.release("acme", "chat", "one")
        with pytest.raises(SessionBusy):
            await store.acquire("acme", "chat", "one")


@asynchronous
async def test_a_fence_outlives_its_lease_and_grows_even_if_it_is_forgotten(
    open_store: OpenStore, raw: redis.Redis
) -> None:
    async with open_store(lease_ttl_ms=1000) as store:
        first = await store.acquire("acme", "chat", "one")
        assert raw.pttl("swaa:{acme}:fence:chat") > 3_600_000
        raw.flushall()
        await asyncio.sleep(0.002)
        second = await store.acquire("acme", "chat", "two")
        assert second > first
        await store.release("acme", "chat", "two")
        await store.release("acme", "chat", "two")
        assert await store.acquire("acme", "chat", "one") > second


@asynchronous
async def test_many_small_and_large_segments_travel_in_batches(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_segments, "BATCH_BYTES", 1000)
    saved = make_session(version=1, layers=20)  # one segment of 9,600 bytes
    async with open_store() as store:
        await store.save("acme", saved.manifest, saved.segments, 0)
        long = make_session("long", layers=1)
        for version in range(1, 30):
            long = make_session("long", version=version, layers=1)
            await store.save("acme", long.manifest, long.segments, version - 1)
        assert await store.fetch("acme", saved.manifest.segments) == [bytes(data) for data in saved.segments.values()]
        assert await store.fetch("acme", long.manifest.segments) == [bytes(data) for data in long.segments.values()]
        twice = (*long.manifest.segments[:2], long.manifest.segments[0])
        assert [len(blob) for blob in await store.fetch("acme", twice)] == [ref.num_bytes for ref in twice]


@pytest.mark.parametrize("bad", ["", "a b", "a:b", "{a}", "ä", "x" * 65, "a\n", "*"])
@asynchronous
async def test_ids_are_checked(open_store: OpenStore, bad: str) -> None:
    saved = make_session()
    async with open_store() as store:
        with pytest.raises(InvalidRequest):
            await store.get(bad, "chat")
        with pytest.raises(InvalidRequest):
            await store.get("acme", bad)
        with pytest.raises(InvalidRequest):
            await store.save("acme", replace(saved.manifest, session_id=bad), saved.segments, 0)
        with pytest.raises(InvalidRequest):
            await store.fork("acme", "chat", bad)
        with pytest.raises(InvalidRequest):
            await store.delete("acme", bad)
        with pytest.raises(InvalidRequest):
            await store.acquire("acme", bad, "one")


@asynchronous
async def test_a_save_that_makes_no_sense_is_a_bug(open_store: OpenStore, raw: redis.Redis) -> None:
    saved = make_session()
    digest = next(iter(saved.segments))
    async with open_store() as store:
        with pytest.raises(IntegrityError):
            await store.save("acme", saved.manifest, saved.segments, 1)
        with pytest.raises(IntegrityError):
            await store.save("acme", saved.manifest, {digest: b"short"}, 0)
        with pytest.raises(IntegrityError):
            await store.save("acme", saved.manifest, {"0" * 32: b"unknown"}, 0)
        with pytest.raises(InvalidRequest):
            await store.list_sessions("acme", 0)
    assert raw.keys() == []


@asynchronous
async def test_forks_and_saves_and_deletes_at_once_lose_and_leak_nothing(
    open_store: OpenStore, raw: redis.Redis
) -> None:
    async with open_store() as store:

        async def live(number: int) -> None:
            session_id = f"s{number}"
            for _ in range(5):
                saved = make_session(session_id)  # all have the same segments
                await store.save("acme", saved.manifest, saved.segments, 0)
                fork = await store.fork("acme", session_id, f"{session_id}-fork")
                await store.delete("acme", session_id)
                assert await store.fetch("acme", fork.segments)
                later = replace(make_session(version=2, seed=number).manifest, session_id=fork.session_id)
                await store.save("acme", later, make_session(version=2, seed=number).segments, 1)
                with pytest.raises(StaleSession):
                    await store.save("acme", later, make_session(version=2, seed=number).segments, 1)
                await store.delete("acme", fork.session_id)

        await asyncio.gather(*(live(number) for number in range(8)))
    assert raw.keys() == []
