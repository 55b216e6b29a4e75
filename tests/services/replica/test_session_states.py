"""How a session's KV comes back and goes out: from memory, from the store, from another session's prompt, in parts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
import redis

from services.errors import QuotaExceeded, StoreUnavailable
from services.gateway.catalog import NamedRecipe
from services.gateway.history import saved_states
from services.replica.job import Event, SessionUse
from services.restore_plan import RestorePlan
from services.sessions.policy import SessionPolicy
from services.sessions.prefix_codec import decode_prefix
from services.sessions.redis_store import RedisSessionStore
from services.sessions.store import KVFormat, SavedPrefix, SegmentRef
from swaa_runtime.kv_cache.slices import SLICE_TOKENS
from swaa_runtime.outputs import PrefillProgress, TokenOutput
from swaa_runtime.visibility import Turn
from tests.swaa_runtime.builders import engine_config, random_tokens, tiny_model

from .builders import (
    NEW,
    RECIPES,
    SESSION,
    SHARING,
    TENANT,
    KnownUse,
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

PREFIXES = f"swaa:{{{TENANT}}}:prefix:*"


async def read_until(events: AsyncGenerator[Event, None], num_tokens: int) -> None:
    """Read until so many tokens of the prompt are computed."""
    async for event in events:
        if isinstance(event, PrefillProgress) and event.num_computed_tokens >= num_tokens:
            return
    raise AssertionError("the prompt ended before")


# In memory.


@pytest.mark.parametrize("recipe", RECIPES)
@asynchronous
async def test_the_next_turn_on_the_same_replica_finds_its_state_in_memory(open_store: OpenStore, recipe: str) -> None:
    async with running_engine() as rig, open_store() as store:
        replica = make_replica(rig, store)
        await run_turn(replica, make_job(70, NEW, recipe))
        for length in (9, 23):
            use = await next_use(store)
            assert use.manifest is not None
            assert replica.is_hot(TENANT, SESSION, use.version)
            ran = await run_turn(replica, make_job(length, use, recipe))
            assert history_of(ran) == "hot"
            assert ran.done.num_restored_tokens == len(use.manifest.token_ids) - 1
            assert ran.done.restore_ms == 0.0
        assert_greedy(await store.get(TENANT, SESSION), recipe)
        await rig.forget()
        assert history_of(await run_turn(replica, make_job(5, await next_use(store), recipe))) == "restored"
        assert_greedy(await store.get(TENANT, SESSION), recipe)


@asynchronous
async def test_a_state_in_memory_is_of_no_use_once_another_replica_has_gone_on(open_store: OpenStore) -> None:
    async with running_engine() as one, running_engine() as other, open_store() as store:
        here, there = make_replica(one, store), make_replica(other, store)
        await run_turn(here, make_job(70, NEW))
        assert history_of(await run_turn(there, make_job(9, await next_use(store)))) == "restored"
        assert history_of(await run_turn(here, make_job(9, await next_use(store)))) == "restored"
        assert history_of(await run_turn(here, make_job(9, await next_use(store)))) == "hot"
        assert_greedy(await store.get(TENANT, SESSION), "tail")
        assert await parked(one) == 1, "what is stale is dropped"


@asynchronous
async def test_a_turn_that_is_not_saved_leaves_nothing_in_memory(open_store: OpenStore) -> None:
    async with running_engine() as rig, open_store(quota_bytes=1) as store:
        ran = await run_turn(make_replica(rig, store), make_job(70, NEW))
        assert ran.done.session is not None
        assert not ran.done.session.saved
        assert "quota" in ran.done.session.error
        assert await parked(rig) == 0


async def parked(rig: Rig) -> int:
    return await rig.loop.call(lambda engine: len(list(engine.parked.requests)))


# From the store, in part.


@pytest.mark.parametrize("recipe", RECIPES)
@asynchronous
async def test_a_history_can_be_computed_in_part_while_the_rest_is_loaded(open_store: OpenStore, recipe: str) -> None:
    async with running_engine(engine_config(max_step_tokens=64)) as rig, open_store() as store:
        replica = make_replica(rig, store)
        await run_turn(replica, make_job(3 * SLICE_TOKENS, NEW, recipe))
        await rig.forget()
        use = await next_use(store)
        job = make_job(9, use, recipe)
        assert job.restore is not None
        ran = await run_turn(replica, replace(job, restore=replace(job.restore, kind="mix", compute_stop=SLICE_TOKENS)))
        assert history_of(ran) == f"mixed: {SLICE_TOKENS} tokens computed while the rest was loaded"
        assert ran.done.num_restored_tokens == 2 * SLICE_TOKENS + 6 - 1
        assert_greedy(await store.get(TENANT, SESSION), recipe)


@asynchronous
async def test_a_planner_may_choose_to_compute_it_all(open_store: OpenStore) -> None:
    async with running_engine() as rig, open_store() as store:
        replica = make_replica(rig, store)
        await run_turn(replica, make_job(70, NEW))
        await rig.forget()
        plan = RestorePlan("recompute", None, "", 0, 0, 1.0, "loading takes 2 ms, recomputing 1 ms")
        ran = await run_turn(replica, make_job(9, await next_use(store), restore=plan))
        assert history_of(ran) == "recomputed: loading takes 2 ms, recomputing 1 ms"
        assert ran.done.num_restored_tokens == 0
        assert_greedy(await store.get(TENANT, SESSION), "tail")


class FailingFetch(RedisSessionStore):
    """Goes away in the middle of a restore."""

    async def fetch(self, tenant: str, refs: Sequence[SegmentRef]) -> list[bytes]:
        raise StoreUnavailable("session store: gone")


@asynchronous
async def test_a_store_that_goes_away_while_it_is_read_costs_time_only(open_store: OpenStore) -> None:
    async with running_engine() as rig, open_store() as store, open_store(kind=FailingFetch) as failing:
        await run_turn(make_replica(rig, store), make_job(300, NEW))
        ran = await run_turn(make_replica(rig, failing), make_job(9, await next_use(store)))
        assert history_of(ran) == "recomputed: session store: gone"
        assert_greedy(await store.get(TENANT, SESSION), "tail")


# Checkpoints, and what others make of them.


@pytest.mark.parametrize("recipe", RECIPES)
@asynchronous
async def test_another_session_starts_where_its_prompt_parts_from_a_saved_one(
    open_store: OpenStore, raw: redis.Redis, recipe: str
) -> None:
    document = random_tokens(200, seed=3)
    async with running_engine(engine_config(max_step_tokens=16)) as rig, open_store() as store:
        replica = make_replica(rig, store, **SHARING)
        first = await run_turn(replica, make_job([*document, 1, 2, 3, 4, 5, 6], NEW, recipe))
        assert history_of(first) == "none"
        shared = raw.keys(PREFIXES)
        job = make_job([*document, *random_tokens(30, seed=4)], SessionUse(TENANT, "other", 0), recipe)
        second = await run_turn(replica, await planned(store, job, **SHARING))
        spared = second.done.num_restored_tokens
        assert history_of(second) == f"prefix: {spared} tokens from another session"
        # Which checkpoints there are depends on the store's speed: one is skipped while the one before is on its way.
        assert spared == max(decode_prefix(cast(bytes, raw.hget(key, "data"))).num_tokens for key in shared)
        assert_greedy(await store.get(TENANT, "other"), recipe)
        use = await use_of(store, "other")
        third = await run_turn(replica, await planned(store, make_job(9, use, recipe), **SHARING))
        assert history_of(third) == "hot"
        assert_greedy(await store.get(TENANT, "other"), recipe)


async def use_of(store: RedisSessionStore, session_id: str) -> KnownUse:
    return KnownUse.of(await store.get(TENANT, session_id))


@asynchronous
async def test_other_tenants_and_sessions_that_do_not_share_find_nothing(open_store: OpenStore) -> None:
    document = random_tokens(200, seed=3)
    async with running_engine() as rig, open_store() as store:
        await run_turn(make_replica(rig, store, **SHARING), make_job(document, NEW))
        alone = {**SHARING, "prefix_ttl_s": 0.0}
        job = make_job(document, SessionUse(TENANT, "other", 0))
        assert (await planned(store, job, **SHARING)).restore is not None
        assert (await planned(store, job, **alone)).restore is None
        stranger = make_job(document, SessionUse("bolt", "other", 0))
        states = await saved_states(
            store,
            "bolt",
            "other",
            SessionPolicy(ttl_s=60.0, checkpoint_tokens=32, prefix_ttl_s=60.0),
            tiny_model().fingerprint,
            [NamedRecipe("tail", "", stranger.recipe, stranger.recipe.resolve(3))],
            None,
            document,
            (Turn(0, 200),),
        )
        assert states == {}


@pytest.mark.parametrize("prefix_ttl_s", [60.0, 0.0])
@asynchronous
async def test_which_checkpoints_stay_when_the_turn_has_ended(
    open_store: OpenStore, raw: redis.Redis, prefix_ttl_s: float
) -> None:
    async with running_engine(engine_config(max_step_tokens=16)) as rig, open_store() as store:
        saved: list[int] = []
        replica = make_replica(rig, store, checkpoint_tokens=32, prefix_ttl_s=prefix_ttl_s)
        original = store.save_prefix

        async def save_prefix(tenant: str, prefix: SavedPrefix, *args: Any) -> None:
            saved.append(prefix.num_tokens)
            await original(tenant, prefix, *args)

        store.save_prefix = save_prefix  # type: ignore[method-assign, assignment]
        rig.let_the_store_keep_up()
        ran = await run_turn(replica, make_job(180, NEW))
        assert history_of(ran) == "none"
        worth_keeping = {at for at in saved if at in (32, 64, 128) or at == max(saved)} if prefix_ttl_s else set()
        assert len(saved) >= 3
        assert len(raw.keys(PREFIXES)) == len(worth_keeping)
        found = await store.get(TENANT, SESSION)
        assert await store.fetch(TENANT, found.segments), "the session has all it needs"


@pytest.mark.parametrize("prefix_ttl_s", [0.0, 60.0])
@asynchronous
async def test_a_prefill_that_was_cut_off_goes_on_from_its_last_checkpoint(
    open_store: OpenStore, prefix_ttl_s: float
) -> None:
    policy = {"checkpoint_tokens": 32, "prefix_ttl_s": prefix_ttl_s}
    prompt = random_tokens(300, seed=8)
    async with open_store() as store:
        async with running_engine(engine_config(max_step_tokens=16)) as rig:
            rig.let_the_store_keep_up()
            job = make_job(prompt, NEW)
            async with contextlib.aclosing(make_replica(rig, store, **policy).generate(job)) as events:
                await read_until(events, 200)
        async with running_engine() as rig:
            again = await planned(store, make_job(prompt, NEW), **policy)
            assert again.restore is not None
            ran = await run_turn(make_replica(rig, store, **policy), again)
            assert ran.done.num_restored_tokens >= 96
            assert history_of(ran).startswith("prefix: ")
        assert_greedy(await store.get(TENANT, SESSION), "tail")


class NoRoomForPrefixes(RedisSessionStore):
    async def save_prefix(
        self,
        tenant: str,
        prefix: SavedPrefix,
        segments: Mapping[str, memoryview | bytes],
        ttl_s: float,
        quota_bytes: int | None = None,
    ) -> None:
        raise QuotaExceeded("no room")


@asynchronous
async def test_checkpoints_that_cannot_be_saved_do_not_matter_to_the_session(open_store: OpenStore) -> None:
    async with running_engine(engine_config(max_step_tokens=16)) as rig, open_store(kind=NoRoomForPrefixes) as store:
        replica = make_replica(rig, store, **SHARING)
        assert history_of(await run_turn(replica, make_job(300, NEW))) == "none"
        await rig.forget()
        assert history_of(await run_turn(replica, make_job(9, await next_use(store)))) == "restored"
        assert_greedy(await store.get(TENANT, SESSION), "tail")


class SlowPrefixes(RedisSessionStore):
    """Never finishes saving a prefix."""

    async def save_prefix(
        self,
        tenant: str,
        prefix: SavedPrefix,
        segments: Mapping[str, memoryview | bytes],
        ttl_s: float,
        quota_bytes: int | None = None,
    ) -> None:
        await asyncio.Event().wait()


@asynchronous
async def test_no_token_waits_for_a_checkpoint(open_store: OpenStore) -> None:
    async with running_engine(engine_config(max_step_tokens=16)) as rig, open_store(kind=SlowPrefixes) as store:
        events = make_replica(rig, store, **SHARING).generate(make_job(300, NEW))
        async with contextlib.aclosing(events):
            tokens = 0
            async for event in events:
                tokens += isinstance(event, TokenOutput)
                if tokens == 6:
                    break
        assert tokens == 6


# Formats and bounds.


@pytest.mark.parametrize("kv_format", ["raw", "zstd", "int8", "fp8"])
@asynchronous
async def test_a_session_is_kept_in_the_format_of_the_policy(open_store: OpenStore, kv_format: KVFormat) -> None:
    async with running_engine() as rig, open_store() as store:
        replica = make_replica(rig, store, kv_format=kv_format)
        await run_turn(replica, make_job(300, NEW))
        await rig.forget()
        ran = await run_turn(replica, make_job(9, await next_use(store)))
        assert history_of(ran) == "restored"
        manifest = await store.get(TENANT, SESSION)
        assert manifest.kv_format == kv_format
        if kv_format in ("raw", "zstd"):
            assert_greedy(manifest, "tail")


@asynchronous
async def test_a_session_of_another_format_is_read_and_written_anew(open_store: OpenStore) -> None:
    async with running_engine() as rig, open_store() as store:
        await run_turn(make_replica(rig, store), make_job(300, NEW))
        replica = make_replica(rig, store, kv_format="zstd")
        assert history_of(await run_turn(replica, make_job(9, await next_use(store)))) == "restored"
        await rig.forget()
        assert (await store.get(TENANT, SESSION)).kv_format == "zstd"
        assert history_of(await run_turn(replica, make_job(9, await next_use(store)))) == "restored"
        assert_greedy(await store.get(TENANT, SESSION), "tail")


@asynchronous
async def test_of_a_state_above_the_bound_only_tokens_are_kept(open_store: OpenStore) -> None:
    async with running_engine(engine_config(max_state_bytes=1000)) as rig, open_store() as store:
        replica = make_replica(rig, store, **SHARING)
        assert history_of(await run_turn(replica, make_job(100, NEW))) == "none"
        manifest = await store.get(TENANT, SESSION)
        assert (manifest.num_kv_tokens, manifest.segments, len(manifest.token_ids)) == (0, (), 106)
        ran = await run_turn(replica, make_job(9, await next_use(store)))
        assert history_of(ran) == "recomputed: only its tokens are saved"
        assert_greedy(await store.get(TENANT, SESSION), "tail")


@asynchronous
async def test_a_state_of_another_recipe_is_not_used_whatever_the_plan_says(open_store: OpenStore) -> None:
    async with running_engine() as rig, open_store() as store:
        replica = make_replica(rig, store)
        await run_turn(replica, make_job(70, NEW, "tail"))
        plan = RestorePlan("load", "session", "", 0, 75, 0.0, "a mistake")
        ran = await run_turn(replica, make_job(9, await next_use(store), "sliding", restore=plan))
        assert history_of(ran) == "recomputed: it was saved under recipe tail"
        assert_greedy(await store.get(TENANT, SESSION), "sliding", first_turn=1)
