"""Turns of sessions through a replica, on a real Redis: what is restored, what is recomputed, what survives what."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest
import redis

from services.errors import SessionBusy, SessionCorrupt, SessionNotFound, StaleSession, StoreUnavailable
from services.replica import lease
from services.replica.job import Done, Event, SessionUse
from services.replica.replica import Replica
from services.sessions.embedded_redis import EmbeddedRedis
from services.sessions.store import Store
from swaa_runtime.errors import DeadlineExceeded, InvalidRequest, OutOfCapacity, RequestCancelled
from swaa_runtime.kv_cache.slices import SLICE_TOKENS
from swaa_runtime.outputs import PrefillProgress, TokenOutput
from swaa_runtime.request import FinishReason
from tests.services.sessions.fake_store import FakeSessionStore
from tests.swaa_runtime.builders import engine_config, random_tokens

from .builders import (
    NEW,
    RECIPES,
    SESSION,
    TENANT,
    Rig,
    assert_greedy,
    asynchronous,
    make_job,
    make_replica,
    next_use,
    run_turn,
    running_engine,
)
from .conftest import OpenStore, store_opener

pytestmark = pytest.mark.redis

SEGMENTS = f"swaa:{{{TENANT}}}:segment:*"


def wait_for(semaphore: threading.Semaphore) -> None:
    assert semaphore.acquire(timeout=120)


async def up_to_first_token(events: AsyncGenerator[Event, None]) -> None:
    async for event in events:
        if isinstance(event, TokenOutput):
            return


@asynchronous
async def test_a_turn_without_a_session_leaves_nothing_behind(open_store: OpenStore, raw: redis.Redis) -> None:
    async with running_engine() as rig, open_store() as store:
        ran = await run_turn(make_replica(rig, store), make_job())
        assert await rig.used_blocks() == 0
    assert ran.done.session is None
    assert len(ran.tokens) == ran.done.num_generated_tokens == 6
    assert ran.done.text == ""
    assert ran.done.reason is FinishReason.LENGTH
    assert raw.keys() == []


@pytest.mark.parametrize("use", [None, NEW])
@asynchronous
async def test_a_turn_that_has_ended_asks_nothing_more_of_the_engine(
    open_store: OpenStore, use: SessionUse | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    async with running_engine() as rig, open_store() as store:
        monkeypatch.setattr(rig.loop, "cancel", asked.append)
        monkeypatch.setattr(rig.loop, "drop_parked", asked.append)
        await run_turn(make_replica(rig, store), make_job(session=use))
    assert asked == [], "it would have had to wait for the end of a step, for nothing"


@pytest.mark.parametrize("recipe", RECIPES)
@asynchronous
async def test_a_session_goes_on_as_if_it_had_never_stopped(open_store: OpenStore, recipe: str) -> None:
    prompts = [random_tokens(count, seed=count) for count in (70, 9, 23)]
    generated: list[list[int]] = []
    use = NEW
    async with open_store() as store:
        for turn, prompt in enumerate(prompts):
            async with running_engine() as rig:  # a replica that has never seen the session
                ran = await run_turn(make_replica(rig, store), make_job(prompt, use, recipe))
                assert await rig.used_blocks() == 0
            outcome = ran.done.session
            assert outcome is not None
            assert (outcome.saved, outcome.error, outcome.version) == (True, "", turn + 1)
            assert outcome.history == ("restored" if turn else "none")
            use = await next_use(store)
            history = sum(len(p) for p in prompts[:turn]) + sum(len(g) for g in generated)
            assert ran.done.num_restored_tokens == max(0, history - 1)
            assert ran.progress[0].num_restored_tokens == max(0, history - 1)
            generated.append(ran.tokens)
        manifest = await store.get(TENANT, SESSION)
        expected = [token for prompt, answer in zip(prompts, generated, strict=True) for token in (*prompt, *answer)]
        assert list(manifest.token_ids) == expected
        assert manifest.recipe == RECIPES[recipe]
        assert manifest.recipe_name == recipe
        assert_greedy(manifest, recipe)


@asynchronous
async def test_a_later_turn_saves_only_what_it_added(open_store: OpenStore) -> None:
    async with running_engine() as rig, open_store() as store:
        replica = make_replica(rig, store)
        first = (await run_turn(replica, make_job(600, NEW, "full"))).done.session
        second = (await run_turn(replica, make_job(5, await next_use(store), "full"))).done.session
        manifest = await store.get(TENANT, SESSION)
    assert first is not None
    assert second is not None
    per_token = replica.bytes_per_token_layer * replica.shape.num_layers
    assert first.saved_bytes == 605 * per_token
    assert second.saved_bytes == (616 - 605 // SLICE_TOKENS * SLICE_TOKENS) * per_token, (
        "the last slice anew; the full ones are stored already"
    )
    assert sum(ref.num_bytes for ref in manifest.segments) == 616 * per_token


async def assert_recomputed(rig: Rig, replica: Replica, store: Store, reason: str, recipe: str = "tail") -> None:
    """The next turn recomputes the history, says why, gives the oracle's tokens, and the one after it is restored."""
    await rig.forget()
    before = await store.get(TENANT, SESSION)
    history = len(before.token_ids)
    ran = await run_turn(replica, make_job(11, await next_use(store), recipe))
    outcome = ran.done.session
    assert outcome is not None
    assert outcome.history.startswith(f"recomputed: {reason}")
    assert outcome.saved
    assert ran.done.num_restored_tokens == 0
    assert ran.progress[-1].num_computed_tokens == history + 11
    await rig.forget()
    again = await run_turn(replica, make_job(3, await next_use(store), recipe))
    assert again.done.session is not None
    assert again.done.session.history == "restored"
    assert again.done.num_restored_tokens == history + 11 + 6 - 1
    assert_greedy(await store.get(TENANT, SESSION), recipe, first_turn=len(before.turns))


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
@asynchronous
async def test_a_damaged_segment_is_recomputed(open_store: OpenStore, raw: redis.Redis, damage: str) -> None:
    async with running_engine() as rig, open_store() as store:
        replica = make_replica(rig, store)
        await run_turn(replica, make_job(60, NEW))
        key = raw.keys(SEGMENTS)[0]
        blob = raw.get(key)
        assert isinstance(blob, bytes)
        if damage == "flipped":
            raw.set(key, bytes([blob[0] ^ 1]) + blob[1:])
        elif damage == "cut":
            raw.set(key, blob[:-1])
        else:
            raw.delete(key)
        await assert_recomputed(rig, replica, store, "segment ")
        assert_greedy(await store.get(TENANT, SESSION), "tail")


@pytest.mark.parametrize("recipe", ["full", "sliding", "interleaved"])
@asynchronous
async def test_another_recipe_recomputes_the_history_under_itself(open_store: OpenStore, recipe: str) -> None:
    async with running_engine() as rig, open_store() as store:
        replica = make_replica(rig, store)
        await run_turn(replica, make_job(60, NEW, "tail"))
        await assert_recomputed(rig, replica, store, "it was saved under recipe tail", recipe)
        assert (await store.get(TENANT, SESSION)).recipe == RECIPES[recipe]


@asynchronous
async def test_segments_that_are_not_the_recipes_are_not_trusted(open_store: OpenStore) -> None:
    async with running_engine() as rig, open_store() as store:
        replica = make_replica(rig, store)
        await run_turn(replica, make_job(300, NEW))
        manifest = await store.get(TENANT, SESSION)
        assert len(manifest.segments) > 1
        await store.save(TENANT, replace(manifest, version=2, segments=manifest.segments[1:]), {}, 1)
        await assert_recomputed(rig, replica, store, "its segments are not those its recipe needs")


@asynchronous
async def test_a_session_of_another_model_is_refused(open_store: OpenStore) -> None:
    async with running_engine() as rig, open_store() as store:
        replica = make_replica(rig, store)
        await run_turn(replica, make_job(20, NEW))
        replica.model_fingerprint = "another"
        with pytest.raises(InvalidRequest, match="x-swaa-session is 'chat': belongs to another model"):
            await run_turn(replica, make_job(5, await next_use(store)))
        assert (await store.get(TENANT, SESSION)).version == 1
        await store.acquire(TENANT, SESSION, "the lease is free")


@asynchronous
async def test_two_turns_at_once_are_one_too_many(open_store: OpenStore) -> None:
    async with running_engine() as rig, open_store() as store:
        replica = make_replica(rig, store)
        await run_turn(replica, make_job(20, NEW))
        use = await next_use(store)
        async with contextlib.aclosing(replica.generate(make_job(5, use, request_id="one"))) as first:
            await up_to_first_token(first)
            with pytest.raises(SessionBusy, match="'chat' is in use by another request"):
                await run_turn(replica, make_job(5, use, request_id="two"))
            rest = [event async for event in first]
        assert isinstance(rest[-1], Done)
        with pytest.raises(StaleSession, match="session chat moved from version 1 to 2"):
            await run_turn(replica, make_job(5, use, request_id="three"))
        assert (await run_turn(replica, make_job(5, await next_use(store)))).done.session


@asynchronous
async def test_a_new_session_that_a_key_names_is_not_opened_twice() -> None:
    store = FakeSessionStore()
    use = replace(NEW, idempotency_key="k")
    async with running_engine() as rig:
        replica = make_replica(rig, store)
        await run_turn(replica, make_job(20, use))
        assert store.manifests[TENANT, SESSION].idempotency_key == "k"
        started = replica.generate(make_job(20, use))
        with pytest.raises(StaleSession, match="session chat is at version 1 already"):
            await anext(started)
        assert not store.leases
        await run_turn(replica, make_job(5, replace(use, version=1, idempotency_key="")))
        assert store.manifests[TENANT, SESSION].idempotency_key == "", "the key is of the last turn only"


@asynchronous
async def test_the_lease_is_free_and_the_turn_saved_when_done_arrives(open_store: OpenStore) -> None:
    async with running_engine() as rig, open_store() as store:
        async for event in make_replica(rig, store).generate(make_job(20, NEW)):
            if isinstance(event, Done):
                await store.acquire(TENANT, SESSION, "next")
                assert (await store.get(TENANT, SESSION)).version == 1
                break
            with pytest.raises(SessionBusy):
                await store.acquire(TENANT, SESSION, "next")
        else:
            pytest.fail("no end")


@asynchronous
async def test_a_turn_longer_than_the_lease_keeps_it(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    async with running_engine() as rig, open_store(lease_ttl_ms=1500) as store:
        async with contextlib.aclosing(make_replica(rig, store).generate(make_job(20, NEW))) as events:
            await up_to_first_token(events)
            until = time.monotonic() + 3.5
            while time.monotonic() < until:
                with pytest.raises(SessionBusy):
                    await store.acquire(TENANT, SESSION, "thief")
                await asyncio.sleep(0.05)
        await store.acquire(TENANT, SESSION, "next")


class DeafStore(FakeSessionStore):
    """A store whose `renew` does not notice that it is cancelled, as redis-py's does at times under Python 3.11."""

    def __init__(self) -> None:
        super().__init__()
        self.renewing = asyncio.Event()

    async def renew(self, tenant: str, session_id: str, owner: str) -> None:
        self.renewing.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.2)


@asynchronous
async def test_a_turn_ends_even_if_its_lease_is_just_being_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.0)
    async with running_engine() as rig:
        store = DeafStore()
        async with contextlib.aclosing(make_replica(rig, store).generate(make_job(20, NEW))) as events:
            await up_to_first_token(events)
            await store.renewing.wait()
            done = [event async for event in events][-1]
        assert isinstance(done, Done)
        await store.acquire(TENANT, SESSION, "next")


@asynchronous
async def test_a_turn_that_is_overtaken_is_aborted_and_changes_nothing(open_store: OpenStore) -> None:
    async with running_engine() as rig, open_store() as store:
        replica = make_replica(rig, store)
        await run_turn(replica, make_job(20, NEW))
        async with contextlib.aclosing(replica.generate(make_job(5, await next_use(store)))) as events:
            await up_to_first_token(events)
            other = replace(await store.get(TENANT, SESSION), version=2)
            await store.save(TENANT, other, {}, 1)
            with pytest.raises(StaleSession, match="session 'chat' is at version 2, not 1"):
                [event async for event in events]
        assert await rig.used_blocks() == 0
        assert (await store.get(TENANT, SESSION)).token_ids == other.token_ids


@asynchronous
async def test_a_session_deleted_meanwhile_stays_deleted(open_store: OpenStore) -> None:
    async with running_engine() as rig, open_store() as store:
        replica = make_replica(rig, store)
        await run_turn(replica, make_job(20, NEW))
        async with contextlib.aclosing(replica.generate(make_job(5, await next_use(store)))) as events:
            await up_to_first_token(events)
            await store.delete(TENANT, SESSION)
            with pytest.raises(StaleSession):
                [event async for event in events]
        with pytest.raises(SessionNotFound):
            await store.get(TENANT, SESSION)


async def until_free(store: Store) -> None:
    while True:
        with contextlib.suppress(SessionBusy):
            await store.acquire(TENANT, SESSION, "probe")
            return await store.release(TENANT, SESSION, "probe")
        await asyncio.sleep(0.1)


@asynchronous
async def test_without_its_store_a_turn_goes_on_and_is_not_saved(private_redis: EmbeddedRedis) -> None:
    async with running_engine() as rig, store_opener(private_redis)() as store:
        replica = make_replica(rig, store)
        expected = await run_turn(replica, make_job(20, max_tokens=50))
        async with contextlib.aclosing(replica.generate(make_job(20, NEW, max_tokens=50))) as events:
            tokens = []
            async for event in events:
                if isinstance(event, TokenOutput):
                    tokens.append(event.token_id)
                    if len(tokens) == 1:
                        private_redis.kill()
        assert tokens == expected.tokens
        assert isinstance(event, Done)
        assert event.session is not None
        assert (event.session.saved, event.session.version) == (False, 0)
        assert event.session.error.startswith("session store: ")
        assert await rig.used_blocks() == 0
        with pytest.raises(StoreUnavailable):
            await run_turn(replica, make_job(20, NEW))
        assert (await run_turn(replica, make_job(20))).tokens, "turns without a session need no store"
        private_redis.start()
        await asyncio.wait_for(until_free(store), 120)  # it is kept trying to give the lease back
        again = await run_turn(replica, make_job(20, NEW))
        assert again.done.session is not None
        assert again.done.session.saved


@pytest.mark.parametrize("how", ["closed", "task cancelled"])
@pytest.mark.parametrize("when", [PrefillProgress, TokenOutput])
@asynchronous
async def test_a_client_that_goes_away_leaves_nothing(open_store: OpenStore, how: str, when: type[Event]) -> None:
    async with running_engine(engine_config(max_step_tokens=16)) as rig, open_store() as store:
        replica = make_replica(rig, store)
        reached = asyncio.Event()

        async def read() -> None:
            async with contextlib.aclosing(replica.generate(make_job(300, NEW, max_tokens=1000))) as events:
                async for event in events:
                    if isinstance(event, when):
                        reached.set()
                        if how == "closed":
                            return

        task = asyncio.create_task(read())
        await reached.wait()
        if how == "task cancelled":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await task if how == "closed" else None
        assert await rig.used_blocks() == 0
        assert rig.engine.scheduler.requests == []
        assert replica.queued_tokens == 0
        await store.acquire(TENANT, SESSION, "next")
        with pytest.raises(SessionNotFound):
            await store.get(TENANT, SESSION)


@asynchronous
async def test_a_deadline_in_mid_prefill_ends_the_turn_and_saves_nothing(open_store: OpenStore) -> None:
    async with running_engine(engine_config(max_step_tokens=16)) as rig, open_store() as store:
        rig.runner.before_step = lambda: time.sleep(0.05)
        with pytest.raises(DeadlineExceeded):
            await run_turn(make_replica(rig, store), make_job(1000, NEW, deadline_s=time.monotonic() + 0.3))
        assert await rig.used_blocks() == 0
        with pytest.raises(SessionNotFound):
            await store.get(TENANT, SESSION)


@asynchronous
async def test_a_request_ended_by_others_is_cancelled(open_store: OpenStore) -> None:
    async with running_engine() as rig, open_store() as store:
        job = make_job(20, max_tokens=1000)
        events = make_replica(rig, store).generate(job)
        await up_to_first_token(events)
        rig.loop.cancel(job.request_id)
        with pytest.raises(RequestCancelled):
            async for _ in events:
                pass


@asynchronous
async def test_what_the_engine_refuses_frees_the_session(open_store: OpenStore) -> None:
    async with running_engine(engine_config(num_blocks=20)) as rig, open_store() as store:
        replica = make_replica(rig, store)
        with pytest.raises(OutOfCapacity):
            await run_turn(replica, make_job(500, NEW))
        assert replica.queued_tokens == 0
        await store.acquire(TENANT, SESSION, "next")


@asynchronous
async def test_the_backlog_counts_prompt_tokens_that_are_not_computed_yet(open_store: OpenStore) -> None:
    step = threading.Semaphore(0)
    async with running_engine(engine_config(max_step_tokens=16)) as rig, open_store() as store:
        replica = make_replica(rig, store)
        rig.runner.before_step = lambda: wait_for(step)
        job = make_job(40)
        async with contextlib.aclosing(replica.generate(job)) as events:
            first = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0.05)
            assert replica.queued_tokens == 40
            assert replica.backlog.request_ids == {job.request_id}
            step.release(100)
            seen = [await first]
            assert replica.queued_tokens == 40 - 16
            seen += [event async for event in events]
        assert [e.num_computed_tokens for e in seen if isinstance(e, PrefillProgress)] == [16, 32, 40]
        assert replica.queued_tokens == 0
        assert replica.backlog.pending == ()


@asynchronous
async def test_a_turn_tells_what_memory_it_took(open_store: OpenStore) -> None:
    async with running_engine() as rig, open_store() as store:
        replica = make_replica(rig, store)
        per_token = replica.bytes_per_token_layer * replica.shape.num_layers
        full = (await run_turn(replica, make_job(400, recipe="full"))).done
        sliding = (await run_turn(replica, make_job(400, recipe="sliding"))).done
        assert full.full_attention_bytes == sliding.full_attention_bytes == 405 * per_token
        block = rig.engine.config.block_size_tokens
        assert full.resident_bytes == full.peak_bytes == -(-405 // block) * block * per_token
        assert sliding.resident_bytes < sliding.peak_bytes < full.resident_bytes / 4
        assert 0 <= sliding.queue_ms < 10_000


@asynchronous
async def test_corruption_beyond_recomputing_is_told(open_store: OpenStore, raw: redis.Redis) -> None:
    async with running_engine() as rig, open_store() as store:
        replica = make_replica(rig, store)
        await run_turn(replica, make_job(20, NEW))
        use = await next_use(store)
        key = f"swaa:{{{TENANT}}}:session:{SESSION}"
        data = raw.hget(key, "data")
        assert isinstance(data, bytes)
        raw.hset(key, "data", data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(SessionCorrupt, match="checksum"):
            await run_turn(replica, make_job(5, use))
        await store.acquire(TENANT, SESSION, "next")
