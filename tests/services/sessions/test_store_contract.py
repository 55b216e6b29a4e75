"""What every store of sessions and prefixes does: Redis's, and the fake that other tests use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any, Protocol

import pytest
import torch
from prometheus_client import CollectorRegistry

from services.errors import (
    QuotaExceeded,
    SegmentsMissing,
    SessionBusy,
    SessionCorrupt,
    SessionExpired,
    SessionNotFound,
    StaleSession,
)
from services.sessions.codec import encode_manifest
from services.sessions.prefix_codec import encode_prefix
from services.sessions.slice_codec import decode_slice
from services.sessions.store import Manifest, PrefixStore, SavedPrefix, SessionStore
from services.telemetry.metrics import StoreMetrics
from services.telemetry.observed_store import ObservedStore

from .builders import HEAD_DIM, NUM_KV_HEADS, asynchronous, make_prefix, make_session
from .fake_store import FakeSessionStore


class Store(SessionStore, PrefixStore, Protocol):
    """Both in one, and what they store."""

    async def usage(self, tenant: str) -> int: ...


Open = Callable[..., AbstractAsyncContextManager[Store]]


class Observed(ObservedStore):
    """Adds what only these tests ask for."""

    def __init__(self, store: FakeSessionStore) -> None:
        super().__init__(store, StoreMetrics(CollectorRegistry()))
        self.usage = store.usage


@pytest.fixture(params=["fake", "observed", pytest.param("redis", marks=pytest.mark.redis)])
def open_any(request: pytest.FixtureRequest) -> Open:
    if request.param == "redis":
        opener: Open = request.getfixturevalue("open_store")
        return opener

    @asynccontextmanager
    async def open_fake(**kwargs: Any) -> AsyncIterator[Store]:
        fake = FakeSessionStore(**kwargs)
        yield Observed(fake) if request.param == "observed" else fake

    return open_fake


@asynchronous
async def test_a_saved_session_comes_back_whole(open_any: Open) -> None:
    saved = make_session(version=1)
    async with open_any(ttl_s=60, clock=lambda: 1000.0) as store:
        await store.save("acme", saved.manifest, saved.segments, 0)
        manifest = await store.get("acme", "chat")
        blobs = await store.fetch("acme", manifest.segments)
    assert manifest == replace(saved.manifest, updated_at_s=1000.0, expires_at_s=1060.0)
    for ref, blob, part in zip(manifest.segments, blobs, saved.slices, strict=True):
        assert torch.equal(decode_slice(ref, blob, NUM_KV_HEADS, HEAD_DIM, torch.bfloat16).data, part.data)


@asynchronous
async def test_a_later_turn_needs_only_its_new_segments(open_any: Open) -> None:
    second, third = make_session(version=2), make_session(version=3)
    async with open_any() as store:
        await store.save("acme", make_session().manifest, make_session().segments, 0)
        await store.save("acme", second.manifest, second.segments, 1)
        new = {digest: data for digest, data in third.segments.items() if digest not in second.segments}
        assert 0 < len(new) < len(third.segments)
        await store.save("acme", third.manifest, new, 2)
        blobs = await store.fetch("acme", (await store.get("acme", "chat")).segments)
    assert blobs == [bytes(data) for data in third.segments.values()]


@asynchronous
async def test_a_session_without_kv_state_is_a_session(open_any: Open) -> None:
    manifest = replace(make_session().manifest, segments=(), num_kv_tokens=0)
    async with open_any() as store:
        await store.save("acme", manifest, {}, 0)
        assert (await store.get("acme", "chat")).token_ids == manifest.token_ids
        assert await store.fetch("acme", ()) == []


@asynchronous
async def test_a_stale_writer_changes_nothing(open_any: Open) -> None:
    first, second = make_session(version=1), make_session(version=2)
    other = make_session(version=2, seed=99)
    async with open_any() as store:
        await store.save("acme", first.manifest, first.segments, 0)
        await store.save("acme", second.manifest, second.segments, 1)
        before = await store.get("acme", "chat")
        for stale, expected in ((other, 1), (make_session(seed=5), 0), (make_session(version=8), 7)):
            with pytest.raises(StaleSession, match="chat"):
                await store.save("acme", stale.manifest, stale.segments, expected)
        assert await store.get("acme", "chat") == before
        assert await store.fetch("acme", before.segments) == [bytes(data) for data in second.segments.values()]


@asynchronous
async def test_a_manifest_is_not_saved_without_its_segments(open_any: Open) -> None:
    saved = make_session(version=2)
    manifest, one = replace(saved.manifest, version=1), next(iter(saved.segments))
    async with open_any() as store:
        with pytest.raises(SegmentsMissing, match=one) as caught:
            await store.save("acme", manifest, {}, 0)
        assert caught.value.segment_ids == set(saved.segments)
        with pytest.raises(SegmentsMissing) as caught:
            await store.save("acme", manifest, {one: saved.segments[one]}, 0)
        assert caught.value.segment_ids == set(saved.segments) - {one}
        with pytest.raises(SessionNotFound):
            await store.get("acme", "chat")


@asynchronous
async def test_of_many_writers_one_wins_each_round(open_any: Open) -> None:
    async with open_any() as store:
        for version in range(1, 6):
            writers = [make_session(version=version, seed=seed) for seed in range(16)]
            results = await asyncio.gather(
                *(store.save("acme", writer.manifest, writer.segments, version - 1) for writer in writers),
                return_exceptions=True,
            )
            winners = [writer for writer, result in zip(writers, results, strict=True) if result is None]
            assert len(winners) == 1
            assert all(result is None or isinstance(result, StaleSession) for result in results)
            manifest = await store.get("acme", "chat")
            assert manifest.token_ids == winners[0].manifest.token_ids
            blobs = await store.fetch("acme", manifest.segments)
            assert blobs == [bytes(data) for data in winners[0].segments.values()]


@asynchronous
async def test_tenants_do_not_see_each_other(open_any: Open) -> None:
    ours, theirs = make_session(seed=1), make_session(seed=2)
    async with open_any() as store:
        await store.save("acme", ours.manifest, ours.segments, 0)
        with pytest.raises(SessionNotFound):
            await store.get("globex", "chat")
        with pytest.raises(SessionCorrupt):
            await store.fetch("globex", ours.manifest.segments)
        await store.save("globex", theirs.manifest, theirs.segments, 0)
        await store.delete("globex", "chat")
        assert [manifest.token_ids for manifest in await store.list_sessions("acme", 9)] == [ours.manifest.token_ids]


@asynchronous
async def test_sessions_are_listed_latest_first(open_any: Open) -> None:
    now_s = 1000.0
    async with open_any(ttl_s=100, clock=lambda: now_s) as store:
        for number, session_id in enumerate(("a", "b", "c", "d")):
            now_s = 1000.0 + number
            saved = make_session(session_id)
            await store.save("acme", saved.manifest, saved.segments, 0)
        now_s = 1010.0
        again = make_session("b", version=2)
        await store.save("acme", again.manifest, again.segments, 1)
        await store.delete("acme", "c")

        assert [manifest.session_id for manifest in await store.list_sessions("acme", 9)] == ["b", "d", "a"]
        assert [manifest.session_id for manifest in await store.list_sessions("acme", 2)] == ["b", "d"]
        now_s = 1101.0  # "a" has expired
        assert [manifest.session_id for manifest in await store.list_sessions("acme", 9)] == ["b", "d"]
        assert await store.list_sessions("globex", 9) == []


@asynchronous
async def test_an_expired_session_says_so_and_its_id_may_be_used_again(open_any: Open) -> None:
    now_s = 1000.0
    async with open_any(ttl_s=100, clock=lambda: now_s) as store:
        saved = make_session(version=1)
        await store.save("acme", saved.manifest, saved.segments, 0)
        now_s = 1100.0
        with pytest.raises(SessionExpired, match="chat"):
            await store.get("acme", "chat")
        with pytest.raises(SessionExpired):
            await store.fork("acme", "chat", "copy")
        again = make_session(seed=3)
        await store.save("acme", again.manifest, again.segments, 0)
        assert (await store.get("acme", "chat")).token_ids == again.manifest.token_ids


@asynchronous
async def test_a_fork_goes_its_own_way(open_any: Open) -> None:
    first, second = make_session(version=2), make_session(version=2, seed=4)
    async with open_any() as store:
        await store.save("acme", make_session().manifest, make_session().segments, 0)
        await store.save("acme", first.manifest, first.segments, 1)
        fork = await store.fork("acme", "chat", "copy")
        assert fork == await store.get("acme", "copy")
        assert (fork.session_id, fork.version, fork.token_ids) == ("copy", 1, first.manifest.token_ids)
        assert fork.segments == first.manifest.segments
        assert (first.manifest.idempotency_key, fork.idempotency_key) == ("key of chat", "")

        moved = replace(second.manifest, session_id="copy")
        await store.save("acme", moved, second.segments, 1)
        assert (await store.get("acme", "chat")).token_ids == first.manifest.token_ids
        await store.delete("acme", "chat")
        assert (await store.get("acme", "copy")).token_ids == moved.token_ids


@asynchronous
async def test_a_fork_never_overwrites(open_any: Open) -> None:
    async with open_any() as store:
        for session_id in ("chat", "copy"):
            saved = make_session(session_id)
            await store.save("acme", saved.manifest, saved.segments, 0)
        with pytest.raises(StaleSession, match="copy"):
            await store.fork("acme", "chat", "copy")
        with pytest.raises(SessionNotFound, match="nobody"):
            await store.fork("acme", "nobody", "new")


@asynchronous
async def test_a_deleted_session_is_gone(open_any: Open) -> None:
    saved = make_session()
    async with open_any() as store:
        await store.save("acme", saved.manifest, saved.segments, 0)
        await store.delete("acme", "chat")
        with pytest.raises(SessionNotFound):
            await store.get("acme", "chat")
        with pytest.raises(SessionNotFound):
            await store.delete("acme", "chat")
        later = make_session(version=2)
        with pytest.raises(StaleSession):
            await store.save("acme", later.manifest, later.segments, 1)


@asynchronous
async def test_a_lease_is_one_owners(open_any: Open) -> None:
    async with open_any() as store:
        await store.acquire("acme", "chat", "one")
        await store.acquire("acme", "chat", "one")
        with pytest.raises(SessionBusy, match="chat"):
            await store.acquire("acme", "chat", "two")
        with pytest.raises(SessionBusy):
            await store.renew("acme", "chat", "two")
        await store.release("acme", "chat", "two")
        await store.renew("acme", "chat", "one")
        await store.acquire("globex", "chat", "two")
        await store.acquire("acme", "other", "two")
        await store.release("acme", "chat", "one")
        await store.acquire("acme", "chat", "two")


@asynchronous
async def test_a_fence_grows_whenever_the_lease_changes_hands(open_any: Open) -> None:
    async with open_any() as store:
        first = await store.acquire("acme", "chat", "one")
        await store.renew("acme", "chat", "one")
        assert await store.acquire("acme", "chat", "one") == first
        await store.release("acme", "chat", "one")
        assert await store.acquire("acme", "chat", "one") == first
        await store.release("acme", "chat", "one")
        second = await store.acquire("acme", "chat", "two")
        await store.release("acme", "chat", "two")
        third = await store.acquire("acme", "chat", "one")
        assert first < second < third


@asynchronous
async def test_a_writer_whose_lease_was_taken_over_loses(open_any: Open) -> None:
    first, second = make_session(), make_session(version=2)
    async with open_any() as store:
        old = await store.acquire("acme", "chat", "one")
        await store.save("acme", first.manifest, first.segments, 0, old)
        await store.release("acme", "chat", "one")
        new = await store.acquire("acme", "chat", "two")
        with pytest.raises(StaleSession, match=r"chat.*somebody else took its lease"):
            await store.save("acme", second.manifest, second.segments, 1, old)
        assert (await store.get("acme", "chat")).version == 1
        await store.save("acme", second.manifest, second.segments, 1, new)
        other = await store.acquire("acme", "other", "two")
        await store.save("acme", replace(first.manifest, session_id="other"), first.segments, 0, other)


@asynchronous
async def test_a_lease_that_nobody_took_still_writes(open_any: Open) -> None:
    saved = make_session()
    async with open_any() as store:
        fence = await store.acquire("acme", "chat", "one")
        await store.release("acme", "chat", "one")
        await store.save("acme", saved.manifest, saved.segments, 0, fence)


@asynchronous
async def test_the_first_prefix_that_is_stored_is_found(open_any: Open) -> None:
    short, long = make_prefix(version=1), make_prefix(version=3)
    async with open_any() as store:
        await store.save_prefix("acme", short.prefix, short.segments, 60.0)
        await store.save_prefix("acme", long.prefix, long.segments, 60.0)
        ids = [f"unknown-{number}" for number in range(3000)]
        assert await store.find_prefix("acme", [*ids, long.prefix.prefix_id, short.prefix.prefix_id]) == long.prefix
        assert await store.find_prefix("acme", [short.prefix.prefix_id, long.prefix.prefix_id]) == short.prefix
        assert await store.find_prefix("acme", ids) is None
        assert await store.find_prefix("acme", []) is None
        assert await store.find_prefix("globex", [short.prefix.prefix_id]) is None
        assert await store.fetch("acme", long.prefix.segments) == [bytes(data) for data in long.segments.values()]
        await store.delete_prefixes("acme", [long.prefix.prefix_id, "unknown"])
        await store.delete_prefixes("acme", [])
        found = await store.find_prefix("acme", [long.prefix.prefix_id, short.prefix.prefix_id])
        assert found == short.prefix
        with pytest.raises(SessionCorrupt):
            await store.fetch("acme", long.prefix.segments)


@asynchronous
async def test_sessions_and_prefixes_share_segments(open_any: Open) -> None:
    saved, cached = make_session(), make_prefix()
    assert saved.segments.keys() == cached.segments.keys()
    async with open_any() as store:
        await store.save("acme", saved.manifest, saved.segments, 0)
        await store.save_prefix("acme", cached.prefix, {}, 60.0)
        await store.delete("acme", "chat")
        assert await store.fetch("acme", cached.prefix.segments)
        await store.save("acme", saved.manifest, {}, 0)
        await store.delete_prefixes("acme", [cached.prefix.prefix_id])
        assert await store.fetch("acme", saved.manifest.segments)


@asynchronous
async def test_a_prefix_is_not_saved_without_its_segments(open_any: Open) -> None:
    cached = make_prefix()
    async with open_any() as store:
        with pytest.raises(SegmentsMissing, match=next(iter(cached.segments))):
            await store.save_prefix("acme", cached.prefix, {}, 60.0)
        assert await store.find_prefix("acme", [cached.prefix.prefix_id]) is None


def stored_bytes(*parts: Manifest | SavedPrefix) -> int:
    """What these take together."""
    sizes = {ref.segment_id: ref.num_bytes for part in parts for ref in part.segments}
    encoded = [encode_manifest(part) if isinstance(part, Manifest) else encode_prefix(part) for part in parts]
    return sum(sizes.values()) + sum(len(data) for data in encoded)


@asynchronous
async def test_usage_counts_each_segment_once(open_any: Open) -> None:
    first, second, cached = make_session(), make_session(version=2), make_prefix(version=2)
    async with open_any() as store:
        await store.save("acme", first.manifest, first.segments, 0)
        chat = await store.get("acme", "chat")
        assert await store.usage("acme") == stored_bytes(chat)
        await store.save("acme", second.manifest, second.segments, 1)
        chat = await store.get("acme", "chat")
        assert await store.usage("acme") == stored_bytes(chat)
        copy = await store.fork("acme", "chat", "copy")
        await store.save_prefix("acme", cached.prefix, cached.segments, 60.0)
        assert await store.usage("acme") == stored_bytes(chat, copy, cached.prefix)
        assert await store.usage("globex") == 0
        await store.delete("acme", "chat")
        assert await store.usage("acme") == stored_bytes(copy, cached.prefix)
        await store.delete("acme", "copy")
        await store.delete_prefixes("acme", [cached.prefix.prefix_id])
        assert await store.usage("acme") == 0


@asynchronous
async def test_what_does_not_fit_is_refused_and_changes_nothing(open_any: Open) -> None:
    first, second = make_session(), make_session(version=2)
    async with open_any() as store:  # to learn what they take
        await store.save("acme", first.manifest, first.segments, 0)
        await store.save("acme", second.manifest, second.segments, 1)
        needed = await store.usage("acme")
        await store.delete("acme", "chat")
    async with open_any(quota_bytes=needed - 1) as store:
        await store.save("acme", first.manifest, first.segments, 0)
        before, used = await store.get("acme", "chat"), await store.usage("acme")
        with pytest.raises(QuotaExceeded, match=rf"quota is {needed - 1} bytes"):
            await store.save("acme", second.manifest, second.segments, 1)
        assert await store.get("acme", "chat") == before
        assert await store.fetch("acme", before.segments)
        assert await store.usage("acme") == used
        await store.save("globex", first.manifest, first.segments, 0)
        await store.delete("acme", "chat")
    async with open_any(quota_bytes=needed) as store:
        await store.save("acme", first.manifest, first.segments, 0)
        await store.save("acme", second.manifest, second.segments, 1)
        with pytest.raises(QuotaExceeded):
            await store.fork("acme", "chat", "copy")


@asynchronous
async def test_prefixes_make_room_those_first_that_were_not_used_for_longest(open_any: Open) -> None:
    prefixes = [make_prefix(seed=seed) for seed in range(4)]
    ids = [cached.prefix.prefix_id for cached in prefixes]
    saved = make_session(seed=9)
    async with open_any(quota_bytes=sum(stored_bytes(cached.prefix) for cached in prefixes)) as store:
        for cached in prefixes:
            await store.save_prefix("acme", cached.prefix, cached.segments, 60.0)
            await asyncio.sleep(0.002)
        assert await store.find_prefix("acme", ids[:1])  # the oldest, but used last
        await asyncio.sleep(0.002)
        await store.save("acme", saved.manifest, saved.segments, 0)
        assert [bool(await store.find_prefix("acme", [prefix_id])) for prefix_id in ids] == [True, False, False, True]

        big = make_prefix(seed=7, layers=1000)
        with pytest.raises(QuotaExceeded):
            await store.save_prefix("acme", big.prefix, big.segments, 60.0)
        assert await store.find_prefix("acme", [ids[3]]), "nothing goes for what does not fit anyway"
        await asyncio.sleep(0.002)
        again = prefixes[1]
        for _ in range(2):
            await store.save_prefix("acme", again.prefix, again.segments, 60.0)
        assert [bool(await store.find_prefix("acme", [prefix_id])) for prefix_id in ids] == [False, True, False, True]
        assert await store.fetch("acme", (await store.get("acme", "chat")).segments)


@asynchronous
async def test_evicting_a_prefix_frees_only_what_nobody_else_uses(open_any: Open) -> None:
    saved, shared, alone = make_session(), make_prefix(), make_prefix(seed=5)
    later = make_session(version=2)
    async with open_any() as store:
        await store.save("acme", saved.manifest, saved.segments, 0)
        quota = await store.usage("acme") + stored_bytes(alone.prefix) + len(encode_prefix(shared.prefix))
        await store.delete("acme", "chat")
    async with open_any(quota_bytes=quota) as store:
        await store.save("acme", saved.manifest, saved.segments, 0)
        await store.save_prefix("acme", shared.prefix, shared.segments, 60.0)
        await asyncio.sleep(0.002)
        await store.save_prefix("acme", alone.prefix, alone.segments, 60.0)
        assert await store.usage("acme") == quota
        await store.save("acme", later.manifest, later.segments, 1)
        assert await store.find_prefix("acme", [shared.prefix.prefix_id, alone.prefix.prefix_id]) is None
        assert await store.fetch("acme", later.manifest.segments)


@asynchronous
async def test_a_prefix_that_makes_room_leaves_what_the_newcomer_shares_with_it(open_any: Open) -> None:
    saved, cached = make_session(), make_prefix()
    async with open_any(quota_bytes=stored_bytes(saved.manifest)) as store:
        await store.save_prefix("acme", cached.prefix, cached.segments, 60.0)
        await store.save("acme", saved.manifest, {}, 0)
        assert await store.find_prefix("acme", [cached.prefix.prefix_id]) is None
        assert await store.fetch("acme", saved.manifest.segments) == [bytes(data) for data in saved.segments.values()]
