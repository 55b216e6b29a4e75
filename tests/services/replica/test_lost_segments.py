"""What a turn builds on is deleted from the store before the turn is saved: it is saved all the same, and whole."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import redis

from services.replica.job import SessionUse
from services.replica.replica import Replica
from services.sessions.redis_store import RedisSessionStore
from services.sessions.store import KVFormat
from tests.swaa_runtime.builders import engine_config, random_tokens

from .builders import (
    NEW,
    RECIPES,
    SESSION,
    SHARING,
    TENANT,
    Rig,
    assert_greedy,
    asynchronous,
    history_of,
    make_job,
    make_replica,
    next_use,
    planned,
    run_turn,
    running_engine,
)
from .conftest import OpenStore

pytestmark = pytest.mark.redis

KEYS = f"swaa:{{{TENANT}}}:"


class LosingStore(RedisSessionStore):
    """Calls `lose` once, just before a turn is saved, or before the checkpoint of that number.

    Attributes:
        num_tried, num_saved: checkpoints.
    """

    lose: Callable[[], None] | None = None
    at_checkpoint: int | None = None
    num_tried = num_saved = 0

    async def save(self, *args: Any, **options: Any) -> None:
        if self.at_checkpoint is None:
            self._lose()
        await super().save(*args, **options)

    async def save_prefix(self, *args: Any, **options: Any) -> None:
        self.num_tried += 1
        if self.num_tried == self.at_checkpoint:
            self._lose()
        await super().save_prefix(*args, **options)
        self.num_saved += 1

    def _lose(self) -> None:
        if self.lose is not None:
            self.lose()
            self.lose = None


@asynccontextmanager
async def losing_store(open_store: OpenStore) -> AsyncIterator[LosingStore]:
    async with open_store(kind=LosingStore) as store:
        assert isinstance(store, LosingStore)
        yield store


def lose_all(raw: redis.Redis) -> None:
    """All that is stored, as if whoever has it had deleted it; leases and fences stay."""
    kept = (KEYS + "lease:", KEYS + "fence:")
    for key in raw.scan_iter(KEYS + "*"):
        if not key.decode().startswith(kept):
            raw.delete(key)


async def assert_saved_whole(rig: Rig, replica: Replica, store: RedisSessionStore, recipe: str, **policy: Any) -> None:
    """The next turn finds all KV of the last one in the store, and goes on right."""
    await rig.forget()
    ran = await run_turn(replica, await planned(store, make_job(9, await next_use(store), recipe), **policy))
    assert history_of(ran) == "restored"
    manifest = await store.get(TENANT, SESSION)
    if manifest.kv_format in ("raw", "zstd"):
        assert_greedy(manifest, recipe)


@pytest.mark.parametrize("recipe", RECIPES)
@asynchronous
async def test_a_turn_outlives_the_session_whose_prompt_it_started_from(
    open_store: OpenStore, raw: redis.Redis, recipe: str
) -> None:
    document = random_tokens(200, seed=3)
    async with running_engine(engine_config(max_step_tokens=16)) as rig, losing_store(open_store) as store:
        replica = make_replica(rig, store, **SHARING)
        rig.let_the_store_keep_up()
        other = SessionUse(TENANT, "other", 0)
        await run_turn(replica, make_job([*document, 1, 2, 3], other, recipe))
        store.lose = partial(lose_all, raw)
        job = await planned(store, make_job([*document, *random_tokens(30, seed=4)], NEW, recipe), **SHARING)
        assert history_of(await run_turn(replica, job)).startswith("prefix: ")
        await assert_saved_whole(rig, replica, store, recipe, **SHARING)


@pytest.mark.parametrize("kv_format", ["raw", "zstd", "int8", "fp8"])
@asynchronous
async def test_a_turn_outlives_its_own_checkpoints(
    open_store: OpenStore, raw: redis.Redis, kv_format: KVFormat
) -> None:
    policy = {**SHARING, "kv_format": kv_format}
    async with running_engine(engine_config(max_step_tokens=16)) as rig, losing_store(open_store) as store:
        replica = make_replica(rig, store, **policy)
        rig.let_the_store_keep_up()
        store.lose = partial(lose_all, raw)
        assert history_of(await run_turn(replica, make_job(200, NEW))) == "none"
        assert store.num_saved
        await assert_saved_whole(rig, replica, store, "tail", **policy)


@asynchronous
async def test_a_checkpoint_whose_start_is_lost_is_the_last_that_fails(open_store: OpenStore, raw: redis.Redis) -> None:
    async with running_engine(engine_config(max_step_tokens=16)) as rig, losing_store(open_store) as store:
        replica = make_replica(rig, store, **SHARING)
        rig.let_the_store_keep_up()
        store.lose, store.at_checkpoint = partial(lose_all, raw), 3
        assert history_of(await run_turn(replica, make_job(300, NEW, "full"))) == "none"
        assert store.num_tried >= 4
        assert store.num_saved == store.num_tried - 1, "all but the third"
        await assert_saved_whole(rig, replica, store, "full", **SHARING)


@asynchronous
async def test_a_session_in_memory_outlives_what_the_store_has_of_it(open_store: OpenStore, raw: redis.Redis) -> None:
    async with running_engine() as rig, open_store() as store:
        replica = make_replica(rig, store)
        await run_turn(replica, make_job(300, NEW))
        for key in raw.scan_iter(KEYS + "segment:*"):
            raw.delete(key)
        assert history_of(await run_turn(replica, make_job(9, await next_use(store)))) == "hot"
        await assert_saved_whole(rig, replica, store, "tail")


@asynchronous
async def test_of_a_state_that_is_nowhere_any_more_the_tokens_are_saved(
    open_store: OpenStore, raw: redis.Redis
) -> None:
    async with running_engine(engine_config(max_step_tokens=16)) as rig, losing_store(open_store) as store:
        replica = make_replica(rig, store, **SHARING)
        rig.let_the_store_keep_up()

        def lose() -> None:
            lose_all(raw)
            rig.engine.parked.evict_oldest()  # it is idle

        store.lose = lose
        ran = await run_turn(replica, make_job(200, NEW))
        assert history_of(ran) == "none"
        manifest = await store.get(TENANT, SESSION)
        assert (manifest.num_kv_tokens, manifest.segments, len(manifest.token_ids)) == (0, (), 206)
        ran = await run_turn(replica, make_job(9, await next_use(store)))
        assert history_of(ran) == "recomputed: only its tokens are saved"
        await assert_saved_whole(rig, replica, store, "tail", **SHARING)
        assert await rig.used_blocks() == 0
