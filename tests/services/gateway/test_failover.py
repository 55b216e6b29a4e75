"""A turn that loses replicas: its client sees one stream, whatever was lost when."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from services.backlog import Backlog
from services.errors import ReplicaLost, SessionBusy, StaleSession
from services.gateway.failover import MAX_FUTILE_ATTEMPTS, run_turn
from services.gateway.replicas import LeasedReplica
from services.replica.facts import ModelFacts
from services.replica.job import Done, Event, Job, SessionUse
from swaa_runtime.errors import EngineFailed, SwaaError
from swaa_runtime.outputs import PrefillProgress, TokenOutput
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import FinishReason, SamplingParams
from swaa_runtime.visibility import Turn
from tests.services.replica.test_wire import FACTS
from tests.services.sessions.builders import make_session
from tests.services.sessions.fake_store import FakeSessionStore
from tests.swaa_runtime.builders import LetterDecoder

PROMPT = tuple(range(40))
TOKENS = [11, 12, 13, 14, 15, 16]
JOB = Job("r", PROMPT, "full", Recipe(), SamplingParams(max_tokens=6), session=SessionUse("acme", "chat", 0))
DONE = Done(FinishReason.LENGTH, "", 6, 0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, None)


@dataclass
class FakeReplica:
    """Answers as a replica that generates TOKENS, until it has given `lives` events; then raises `end`."""

    lives: int = 1000
    end: Callable[[], SwaaError] = lambda: ReplicaLost("gone")
    jobs: list[Job] = field(default_factory=list)
    facts: ModelFacts = FACTS
    backlog: Backlog = field(default_factory=Backlog)
    is_hot: bool = False

    def promise(self, job: Job) -> None:
        raise AssertionError("only what has been planned is promised")

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        self.jobs.append(job)
        known = len(job.sent_token_ids)
        events: list[Event] = [PrefillProgress("r", done, 40, 0) for done in (10, 20, 30, 40)]
        events += [TokenOutput("r", token, f"<{token}>", None) for token in TOKENS[max(0, known - 1) :]]
        for event in [*events, DONE][: self.lives]:
            yield event
        if self.lives <= len(events):
            raise self.end()


class FakeReplicas:
    """Leases these replicas, one after another."""

    def __init__(self, *replicas: FakeReplica) -> None:
        self.waiting = list(replicas)
        self.held = 0

    @contextlib.asynccontextmanager
    async def lease(self, session: SessionUse | None) -> AsyncIterator[LeasedReplica]:
        assert session == JOB.session
        assert self.held == 0, "the one that is lost is given back"
        self.held += 1
        try:
            yield self.waiting.pop(0)
        finally:
            self.held -= 1


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    run.__name__ = test.__name__
    return run


async def run(first: FakeReplica, *others: FakeReplica, store: FakeSessionStore | None = None) -> list[Event]:
    replicas = FakeReplicas(*others)

    async def replan(job: Job, replica: LeasedReplica) -> Job:
        return replace(job, priority=job.priority + 1)

    events = run_turn(replicas, first, JOB, replan, store or FakeSessionStore(), LetterDecoder())
    seen = [event async for event in events]
    assert replicas.held == 0
    return seen


def whole() -> list[Event]:
    progress: list[Event] = [PrefillProgress("r", done, 40, 0) for done in (10, 20, 30, 40)]
    return [*progress, *(TokenOutput("r", token, f"<{token}>", None) for token in TOKENS), DONE]


def test_a_turn_that_loses_nothing() -> None:
    replica = FakeReplica()
    assert asyncio.run(run(replica)) == whole()
    assert replica.jobs == [JOB]


@pytest.mark.parametrize("lives", range(11))
@pytest.mark.parametrize("end", [ReplicaLost, EngineFailed])
def test_lost_after_any_event(lives: int, end: type[SwaaError]) -> None:
    other = FakeReplica()
    assert asyncio.run(run(FakeReplica(lives, lambda: end("gone")), other)) == whole()
    [job] = other.jobs
    assert list(job.sent_token_ids) == TOKENS[: max(0, lives - 4)]
    assert (job.request_id, job.priority) == ("r", 1), "planned again, for the same lease"


@pytest.mark.parametrize("first", range(0, 11, 3))
@pytest.mark.parametrize("second", range(0, 11, 2))
def test_lost_again(first: int, second: int) -> None:
    assert asyncio.run(run(FakeReplica(first), FakeReplica(second), FakeReplica())) == whole()


def test_enough_is_enough() -> None:
    replicas = [FakeReplica(2) for _ in range(1 + MAX_FUTILE_ATTEMPTS)]
    with pytest.raises(ReplicaLost, match=f"{MAX_FUTILE_ATTEMPTS} attempts in a row .* any further; the last: gone"):
        asyncio.run(run(*replicas))
    assert all(len(replica.jobs) == 1 for replica in replicas)


def test_a_turn_that_gets_further_each_time_goes_on() -> None:
    """Its prompt, then its answer, an event more each time: as many replicas as there are events, and the last one."""
    further = [FakeReplica(lives) for lives in range(1, 5)]
    further += [FakeReplica(lives) for lives in (5, *[6] * 5)]  # from the second token on, one is repeated
    assert len(further) > MAX_FUTILE_ATTEMPTS
    assert asyncio.run(run(*further, FakeReplica())) == whole()
    assert all(len(replica.jobs) == 1 for replica in further)


@pytest.mark.parametrize("futile", range(MAX_FUTILE_ATTEMPTS))
def test_attempts_are_counted_anew_once_it_got_further(futile: int) -> None:
    lost = [FakeReplica(0) for _ in range(futile)]
    again = [FakeReplica(0) for _ in range(futile)]
    assert asyncio.run(run(*lost, FakeReplica(1), *again, FakeReplica())) == whole()


def test_an_error_of_the_turns_own_is_not_tried_elsewhere() -> None:
    other = FakeReplica()
    for error in (SessionBusy("busy"), StaleSession("moved")):
        with pytest.raises(type(error)):
            asyncio.run(run(FakeReplica(0, lambda error=error: error), other))  # type: ignore[misc]
    assert other.jobs == []


async def stored(**changes: Any) -> FakeSessionStore:
    """A store that has the turn: prompt and TOKENS, as the lost replica saved it."""
    store = FakeSessionStore()
    manifest = replace(
        make_session("chat").manifest,
        token_ids=(*PROMPT, *TOKENS),
        turns=(Turn(0, 40, 46),),
        num_kv_tokens=0,
        segments=(),
        **changes,
    )
    await store.save("acme", manifest, {}, 0)
    return store


@pytest.mark.parametrize("lives", range(11))
def test_a_turn_that_was_saved_before_its_replica_was_lost_is_told_to_its_end(lives: int) -> None:
    async def check() -> None:
        other = FakeReplica(0, lambda: StaleSession("at version 1"))
        *events, done = await run(FakeReplica(lives), other, store=await stored())
        tokens = [event.token_id for event in events if isinstance(event, TokenOutput)]
        assert tokens == TOKENS
        assert isinstance(done, Done)
        assert done.session is not None
        assert (done.reason, done.num_generated_tokens) == (FinishReason.LENGTH, 6)
        assert (done.session.version, done.session.saved) == (1, True)
        assert done.session.history.startswith("recovered: ")

    asyncio.run(check())


@asynchronous
async def test_another_turn_in_its_place_is_stale() -> None:
    store = await stored()
    manifest = store.manifests["acme", "chat"]
    for changes in ({"token_ids": (*PROMPT, *TOKENS[:2], *TOKENS[:4])}, {"token_ids": (*PROMPT[::-1], *TOKENS)}):
        store.manifests["acme", "chat"] = replace(manifest, **changes)  # type: ignore[arg-type]
        with pytest.raises(StaleSession, match="has moved on"):
            await run(FakeReplica(8), FakeReplica(0, lambda: StaleSession("at version 1")), store=store)
