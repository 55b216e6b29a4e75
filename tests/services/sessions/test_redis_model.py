"""Random operations on the Redis store beside a model: nothing used is lost, nothing unused stays, books are right."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from redis.asyncio import Redis

from services.errors import QuotaExceeded, SessionExpired, SessionNotFound, StaleSession
from services.sessions.codec import encode_manifest, segment_id
from services.sessions.embedded_redis import EmbeddedRedis
from services.sessions.prefix_codec import encode_prefix
from services.sessions.redis_segments import MARGIN_S
from services.sessions.redis_store import RedisSessionStore
from services.sessions.store import Manifest, SavedPrefix

from .builders import make_manifest

pytestmark = pytest.mark.redis

T = TypeVar("T")

TTL_S = 1000.0
BLOBS = [bytes([number]) * (100 + 7 * number) for number in range(6)]
SEGMENTS = {segment_id(blob): blob for blob in BLOBS}
SIZES = {digest: len(blob) for digest, blob in SEGMENTS.items()}

ADVANCE = """
-- Let time pass: what ends, ends ARGV[1] ms sooner.
for _, key in ipairs(redis.call('KEYS', '*')) do
  if string.find(key, ':ledger$') or string.find(key, ':users:') then
    for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do redis.call('ZINCRBY', key, -ARGV[1], member) end
  end
  redis.call('PEXPIRE', key, redis.call('PTTL', key) - ARGV[1])
end
"""

session_ids = st.sampled_from(["a", "b", "c"])
prefix_ids = st.sampled_from(["p", "q", "r"])
subsets = st.sets(st.sampled_from(sorted(SEGMENTS)))


@dataclass(slots=True)
class Item:
    """A session or prefix as the model has it; times in seconds."""

    segments: set[str]
    num_bytes: int
    ends_s: float
    ttl_s: float
    used: int
    version: int = 0


@dataclass(slots=True)
class Model:
    """What should be stored. Items are named as the store names them; ended ones stay, and count no more."""

    quota_bytes: int | None
    now_s: float = 0.0
    items: dict[str, Item] = field(default_factory=dict)
    uses: dict[tuple[str, str], float] = field(default_factory=dict)

    def live(self, name: str) -> Item | None:
        item = self.items.get(name)
        return item if item is not None and item.ends_s > self.now_s else None

    def names(self, kind: str) -> list[str]:
        return [name for name in self.items if name.startswith(kind) and self.live(name)]

    def stored(self) -> set[str]:
        return {digest for (digest, _), until_s in self.uses.items() if until_s > self.now_s}

    def usage(self) -> int:
        items = sum(item.num_bytes for name in self.items if (item := self.live(name)))
        return items + sum(SIZES[digest] for digest in self.stored())

    def drop(self, name: str) -> None:
        if self.live(name):
            for digest in self.items.pop(name).segments:
                self.uses.pop((digest, name), None)

    def fits(self, name: str, item: Item, use_s: float) -> bool:
        """Commit if it fits, after prefixes have gone if need be; otherwise change nothing."""
        before = dict(self.items), dict(self.uses)
        self.drop(name)
        self.items[name] = item
        self.uses.update({(digest, name): self.now_s + use_s + MARGIN_S for digest in item.segments})
        while self.quota_bytes is not None and self.usage() > self.quota_bytes:
            others = [(self.items[other].used, other) for other in self.names("prefix:") if other != name]
            if not others:
                self.items, self.uses = before
                return False
            self.drop(min(others)[1])
        return True


class StoreMachine(RuleBasedStateMachine):
    """The store and its model, side by side."""

    url = ""

    @initialize(quota_bytes=st.sampled_from([None, 900, 1500]))
    def open(self, quota_bytes: int | None) -> None:
        self.raw = redis.Redis.from_url(self.url)
        self.raw.flushall()
        self.model = Model(quota_bytes)
        self.uses = self.ticks = 0
        self.runner = asyncio.Runner()
        self.store = self.wait(self.open_store(quota_bytes))

    async def open_store(self, quota_bytes: int | None) -> RedisSessionStore:
        return RedisSessionStore(Redis.from_url(self.url), TTL_S, clock=self.clock, quota_bytes=quota_bytes)

    def clock(self) -> float:
        self.ticks += 1  # else two calls would be one, sent twice
        return 1e6 + self.model.now_s + 1e-3 * self.ticks

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @rule(session_id=session_ids, segments=subsets, stale=st.booleans())
    def save(self, session_id: str, segments: set[str], stale: bool) -> None:
        name = f"session:{session_id}"
        item = self.model.live(name)
        expected = item.version if item else 0
        if item and self.expired(item):
            expected = 0
        if stale:
            expected += 1
        manifest = make_manifest(session_id, expected + 1, blobs_of(segments))
        saving = self.store.save("t", manifest, blobs_of(segments), expected)
        if stale and not (item and expected == item.version):
            with pytest.raises(StaleSession):
                self.wait(saving)
        elif self.model.fits(name, self.item(manifest, segments, expected + 1), TTL_S):
            self.wait(saving)
        else:
            with pytest.raises(QuotaExceeded):
                self.wait(saving)

    @rule(session_id=session_ids, new_id=session_ids)
    def fork(self, session_id: str, new_id: str) -> None:
        source, there = self.model.live(f"session:{session_id}"), self.model.live(f"session:{new_id}")
        forking = self.store.fork("t", session_id, new_id)
        if source is None or self.expired(source):
            with pytest.raises(SessionNotFound):
                self.wait(forking)
        elif there and not self.expired(there):
            with pytest.raises(StaleSession):
                self.wait(forking)
        else:
            copy = replace(make_manifest(new_id, 1, blobs_of(source.segments)), idempotency_key="")
            item = self.item(copy, source.segments, 1)
            if self.model.fits(f"session:{new_id}", item, TTL_S):
                self.wait(forking)
            else:
                with pytest.raises(QuotaExceeded):
                    self.wait(forking)

    @rule(session_id=session_ids)
    def delete(self, session_id: str) -> None:
        if self.model.live(f"session:{session_id}"):
            self.wait(self.store.delete("t", session_id))
            self.model.drop(f"session:{session_id}")
        else:
            with pytest.raises(SessionNotFound):
                self.wait(self.store.delete("t", session_id))

    @rule(prefix_id=prefix_ids, segments=subsets, ttl_s=st.sampled_from([300.0, 2500.0]))
    def save_prefix(self, prefix_id: str, segments: set[str], ttl_s: float) -> None:
        prefix = SavedPrefix(prefix_id, 1, make_manifest("a", 1, blobs_of(segments)).segments)
        num_bytes = len(encode_prefix(prefix))
        item = Item(segments, num_bytes, self.model.now_s + ttl_s, ttl_s, self.next_use())
        saving = self.store.save_prefix("t", prefix, blobs_of(segments), ttl_s)
        if self.model.fits(f"prefix:{prefix_id}", item, ttl_s):
            self.wait(saving)
        else:
            with pytest.raises(QuotaExceeded):
                self.wait(saving)

    @rule(ids=st.permutations(["p", "q", "r"]))
    def find_prefix(self, ids: list[str]) -> None:
        found = self.wait(self.store.find_prefix("t", ids))
        expected = next((prefix_id for prefix_id in ids if self.model.live(f"prefix:{prefix_id}")), None)
        assert (found.prefix_id if found else None) == expected
        if found is None:
            return
        item = self.model.items[f"prefix:{expected}"]
        item.used = self.next_use()
        item.ends_s = self.model.now_s + item.ttl_s
        until_s = item.ends_s + MARGIN_S
        self.model.uses.update({(digest, f"prefix:{expected}"): until_s for digest in item.segments})

    @rule(ids=st.lists(prefix_ids))
    def delete_prefixes(self, ids: list[str]) -> None:
        self.wait(self.store.delete_prefixes("t", ids))
        for prefix_id in ids:
            self.model.drop(f"prefix:{prefix_id}")

    @rule(hundreds=st.integers(1, 12))
    def time_passes(self, hundreds: int) -> None:
        # Lives are whole hundreds of seconds: so nothing ends within seconds of now, however fast the test runs.
        self.pass_time(100.0 * hundreds + 37.0)

    @invariant()
    def sessions_are_whole(self) -> None:
        for session_id in ("a", "b", "c"):
            item = self.model.live(f"session:{session_id}")
            if item is None or self.expired(item):
                with pytest.raises(SessionExpired if item else SessionNotFound):
                    self.wait(self.store.get("t", session_id))
                continue
            manifest = self.wait(self.store.get("t", session_id))
            assert manifest.version == item.version
            assert {ref.segment_id for ref in manifest.segments} == item.segments
            blobs = self.wait(self.store.fetch("t", manifest.segments))
            assert blobs == [SEGMENTS[ref.segment_id] for ref in manifest.segments]

    @invariant()
    def what_is_stored_is_what_is_counted(self) -> None:
        segments = {key.split(b":")[-1].decode(): self.raw.strlen(key) for key in self.keys("segment:*")}
        assert segments.keys() == self.model.stored()
        data = sum(self.raw.hstrlen(key, "data") for kind in ("session:*", "prefix:*") for key in self.keys(kind))
        assert self.wait(self.store.usage("t")) == sum(segments.values()) + data == self.model.usage()
        assert all(self.raw.ttl(key) >= 0 for key in self.keys("*")), "nothing lives for ever"

    def teardown(self) -> None:
        if hasattr(self, "store"):
            try:
                self.delete_everything()
            finally:
                self.wait(self.store.close())
                self.runner.close()
                self.raw.close()

    def delete_everything(self) -> None:
        for name in self.model.names("session:"):
            self.delete(name.removeprefix("session:"))
        self.delete_prefixes(["p", "q", "r"])
        self.wait(self.store.list_sessions("t", 9))  # forgets those that expired
        if not self.model.stored():
            assert self.keys("*") == []
        self.pass_time(10_000.0)  # segments of prefixes that expired were about to go
        assert self.wait(self.store.usage("t")) == 0
        assert self.keys("*") == []

    def item(self, manifest: Manifest, segments: Iterable[str], version: int) -> Item:
        stamped = replace(manifest, expires_at_s=1e6)
        ends_s = self.model.now_s + 2 * TTL_S
        return Item(set(segments), len(encode_manifest(stamped)), ends_s, TTL_S, self.next_use(), version)

    def expired(self, item: Item) -> bool:
        return item.ends_s - TTL_S <= self.model.now_s

    def next_use(self) -> int:
        self.uses += 1
        return self.uses

    def pass_time(self, seconds: float) -> None:
        self.raw.eval(ADVANCE, 0, str(int(1000 * seconds)))
        self.model.now_s += seconds

    def keys(self, pattern: str) -> list[bytes]:
        keys: Any = self.raw.keys("swaa:{t}:" + pattern)
        return list(keys)


def blobs_of(segments: Iterable[str]) -> dict[str, bytes]:
    return {digest: SEGMENTS[digest] for digest in sorted(segments)}


def test_random_operations_lose_and_leak_nothing(server: EmbeddedRedis) -> None:
    machine = type("Machine", (StoreMachine,), {"url": server.url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
