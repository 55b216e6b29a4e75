"""The audit finds what is off in Redis, and nothing where all is well."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from services.sessions.embedded_redis import EmbeddedRedis
from services.sessions.redis_store import RedisSessionStore
from tests.services.sessions.builders import make_prefix, make_session
from tests.soak import audit

pytestmark = pytest.mark.redis

TENANT = "tests"
ROOT = f"swaa:{{{TENANT}}}:"
SEGMENT = make_session().manifest.segments[0].segment_id


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    with (
        tempfile.TemporaryDirectory(prefix="swaa-audit-", ignore_cleanup_errors=True) as folder,
        EmbeddedRedis(Path(folder)) as server,
    ):
        yield server


@pytest.fixture
def client(server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Of a store with a session, a fork of it and a prefix."""
    monkeypatch.setattr(audit, "LOOK_AGAIN_S", 0.0)

    async def fill() -> None:
        store = RedisSessionStore.from_url(server.url, ttl_s=3600)
        saved, prefix = make_session(), make_prefix(seed=3)
        await store.save(TENANT, saved.manifest, saved.segments, 0)
        await store.fork(TENANT, saved.manifest.session_id, "fork")
        await store.save_prefix(TENANT, prefix.prefix, prefix.segments, 3600)
        await store.close()

    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        asyncio.run(fill())
        yield client


def test_what_the_store_wrote_is_consistent(client: Any) -> None:
    found = audit.audit(client)
    assert found.faults == ()
    assert set(found.sessions) == {"chat", "fork"}
    assert (found.num_prefixes, found.num_segments, found.num_unnamed) == (1, 2, 0)
    assert found.stored_bytes == int(client.get(f"{ROOT}bytes"))


BROKEN: dict[str, tuple[Callable[[Any], object], str]] = {
    "a segment is gone": (lambda c: c.delete(f"{ROOT}segment:{SEGMENT}"), f"segment {SEGMENT} has None bytes"),
    "a segment is short": (lambda c: c.set(f"{ROOT}segment:{SEGMENT}", b"x", ex=60), "has 1 bytes, not"),
    "a user is unknown": (lambda c: c.zrem(f"{ROOT}users:{SEGMENT}", "session:chat"), "does not know its user"),
    "a lease is left": (lambda c: c.set(f"{ROOT}lease:chat", b"x", ex=60), "lease:chat is held"),
    "no end": (lambda c: c.persist(f"{ROOT}session:chat"), "session:chat has no time to live"),
    "the sum is off": (lambda c: c.incrby(f"{ROOT}bytes", 1), "its entries add up to"),
    "an entry too many": (lambda c: c.zadd(f"{ROOT}ledger", {"segment:aa:7": 1e14}), "aa:7 counts, and is not stored"),
    "an entry is missing": (lambda c: c.zrem(f"{ROOT}ledger", *c.zrange(f"{ROOT}ledger", 0, 0)), "does not count"),
    "a manifest is damaged": (lambda c: c.hset(f"{ROOT}session:chat", "data", b"x"), "session chat: "),
    "a session is in no index": (lambda c: c.zrem(f"{ROOT}index", "chat"), "session:chat is in no index"),
    "a foreign key": (lambda c: c.set("swaa:what", b"x", ex=60), "swaa:what: of no known form"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_found(client: Any, case: str) -> None:
    damage, said = BROKEN[case]
    damage(client)
    faults = audit.audit(client).faults
    assert any(said in fault for fault in faults), faults


def test_a_segment_that_nobody_names_yet_is_no_fault(client: Any) -> None:
    client.set(f"{ROOT}segment:{'a' * 32}", b"x", ex=60)
    found = audit.audit(client)
    assert (found.num_unnamed, found.faults) == (1, ())
