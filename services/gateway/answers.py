"""Turns as the gateway runs them, whatever wire they came by: count, understand, lease, plan, run, judge.

    prompt, headers ──▶ Accepted ──▶ PrefillProgress … ──▶ TokenOutput … ──▶ Answered

gRPC and HTTP translate at both ends; nothing else is theirs.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass, field, replace

from services.gateway import planner
from services.gateway.failover import run_turn
from services.gateway.identity import Identity, new_session_id
from services.gateway.observer import AnswerWatch, NullObserver, Observer
from services.gateway.prompt import PromptInput
from services.gateway.quotas import Quotas
from services.gateway.replay import replayed
from services.gateway.replicas import LeasedReplica, Replicas
from services.gateway.sla import Objective
from services.gateway.turns import Planned, TurnPlanner, Understood
from services.replica.job import Done, Event, Job
from services.sessions.store import Manifest, Store
from swaa_runtime.outputs import PrefillProgress, TokenOutput
from swaa_runtime.request import SamplingParams

NO_OBSERVER = NullObserver()

Headers = Iterable[tuple[str, str | bytes]]
"""A request's headers, names in lower case; those that are not ours are ignored."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A turn has been planned and is about to run."""

    job: Job
    planned: Planned


@dataclass(frozen=True, slots=True)
class Timings:
    """What happened when, in ms, as a client of this gateway sees it; `tpot_ms` is the mean after the first token."""

    queue_ms: float
    restore_ms: float
    ttft_ms: float
    tpot_ms: float
    save_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True)
class Answered:
    """A turn has ended well. `misses`: what of its objective was missed, in words; empty if it was met."""

    done: Done
    job: Job
    planned: Planned
    timings: Timings
    misses: tuple[str, ...]


AnswerEvent = Accepted | PrefillProgress | TokenOutput | Answered


@dataclass(slots=True)
class _Clock:
    """When things happened; on the clock of time.monotonic."""

    arrival_s: float = field(default_factory=time.monotonic)
    first_token_s: float = 0.0
    last_token_s: float = 0.0

    def token(self) -> None:
        """A token came."""
        self.last_token_s = time.monotonic()
        self.first_token_s = self.first_token_s or self.last_token_s

    def timings(self, done: Done) -> Timings:
        """Of a turn that ended now."""
        after_first = done.num_generated_tokens - 1
        decode_ms = (self.last_token_s - self.first_token_s) * 1e3
        return Timings(
            queue_ms=done.queue_ms,
            restore_ms=done.restore_ms,
            ttft_ms=(self.first_token_s - self.arrival_s) * 1e3,
            tpot_ms=decode_ms / after_first if after_first > 0 else 0.0,
            save_ms=done.save_ms,
            total_ms=(time.monotonic() - self.arrival_s) * 1e3,
        )


class Answers:
    """Knows how turns are planned, where replicas and sessions are, and what ends an answer.

    Who asks is said with every request: their sessions, their bounds.
    """

    def __init__(
        self,
        turns: TurnPlanner,
        replicas: Replicas,
        store: Store,
        quotas: Quotas,
        eos_token_ids: frozenset[int],
        observer: Observer = NO_OBSERVER,
    ) -> None:
        self.turns = turns
        self._replicas = replicas
        self._store = store
        self._quotas = quotas
        self._eos_token_ids = eos_token_ids
        self._observer = observer

    async def answer(
        self,
        identity: Identity,
        prompt: PromptInput,
        params: SamplingParams,
        headers: Headers,
        deadline_s: float | None = None,
    ) -> AsyncGenerator[AnswerEvent, None]:
        """Run one turn. Close the iterator to end it early; everything it holds is freed.

        Args:
            deadline_s: on the clock of time.monotonic.

        Raises:
            RateExceeded: the tenant's quota is used up.
            Whatever `TurnPlanner.understand`, `TurnPlanner.plan` and `failover.run_turn` raise.
        """
        with self._observer.answer(headers) as watch:
            answering = self._answer(identity, prompt, params, headers, deadline_s, watch)
            async with contextlib.aclosing(answering) as events:
                async for event in events:
                    if isinstance(event, Accepted):
                        watch.accepted(event)
                    elif isinstance(event, Answered):
                        watch.answered(event)
                    yield event

    async def _answer(
        self,
        identity: Identity,
        prompt: PromptInput,
        params: SamplingParams,
        headers: Headers,
        deadline_s: float | None,
        watch: AnswerWatch,
    ) -> AsyncGenerator[AnswerEvent, None]:
        clock, catalog, tenant = _Clock(), self.turns.catalog, identity.tenant
        async with contextlib.AsyncExitStack() as stack:
            prefilled = await stack.enter_async_context(self._quotas.turn(catalog, tenant))
            with watch.step("understand"):
                request = await self.turns.understand(identity, prompt, params.max_tokens, headers, new_session_id())
            watch.understood(request)
            if request.saved is not None:
                for again in self._replay(request, request.saved, params, clock):
                    yield again
                return
            await self._quotas.prompt(catalog, tenant, len(request.token_ids))
            replica = await stack.enter_async_context(self._replicas.lease(request.session))
            with watch.step("plan"):
                planned = await self.turns.plan(request, replica)
            job = replace(self.turns.job(planned, uuid.uuid4().hex, params, deadline_s), trace_headers=watch.headers)
            replica.promise(job)
            yield Accepted(job, planned)

            num_failovers = 0

            async def replan(cut_off: Job, other: LeasedReplica) -> Job:
                nonlocal num_failovers
                num_failovers += 1
                watch.failed_over()
                return await self.turns.replan(planned, cut_off, other)

            running = run_turn(self._replicas, replica, job, replan, self._store, self.turns.encoder.decoder)
            async with contextlib.aclosing(running) as events:
                async for event in events:
                    if isinstance(event, TokenOutput):
                        prefilled()
                    told = _told(event, job, planned, clock)
                    if isinstance(told, Answered) and not num_failovers:  # else more was beside the engine than usual
                        spent_ms, done = planned.work.spent_ms, told.done
                        self.turns.overhead.learn(told.timings.ttft_ms, spent_ms, done.queue_ms, done.prefill_ms)
                    yield told

    def _replay(
        self, request: Understood, saved: Manifest, params: SamplingParams, clock: _Clock
    ) -> Iterator[AnswerEvent]:
        planned = self.turns.replay(request, saved)
        job = self.turns.job(planned, uuid.uuid4().hex, params, None)
        yield Accepted(job, planned)
        decoder = self.turns.encoder.decoder
        for event in replayed(saved, job, decoder, self._eos_token_ids, history="replayed"):
            yield _told(event, job, planned, clock)

    async def plan(self, identity: Identity, prompt: PromptInput, max_tokens: int, headers: Headers) -> Planned:
        """What `answer` would do, without running anything. Raises what it raises."""
        await self._quotas.request(self.turns.catalog, identity.tenant)
        request = await self.turns.understand(identity, prompt, max_tokens, headers, new_session_id())
        async with self._replicas.lease(request.session) as replica:
            return await self.turns.plan(request, replica)

    async def plan_length(
        self, identity: Identity, prompt_tokens: int, max_tokens: int, headers: Headers
    ) -> tuple[Objective, planner.Work, planner.Plan]:
        """The same for a prompt of which only the length is known."""
        await self._quotas.request(self.turns.catalog, identity.tenant)
        asked = await self.turns.ask(identity, headers)
        async with self._replicas.lease(None) as replica:
            return asked.objective, *self.turns.plan_length(asked, prompt_tokens, max_tokens, replica)


def _told(event: Event, job: Job, planned: Planned, clock: _Clock) -> AnswerEvent:
    """A replica's event as the client is told it, now."""
    if isinstance(event, Done):
        return _answered(event, job, planned, clock.timings(event))
    if isinstance(event, TokenOutput):
        clock.token()
    return event


def _answered(done: Done, job: Job, planned: Planned, timings: Timings) -> Answered:
    missed = planner.misses(planned.request.objective, timings.ttft_ms, timings.tpot_ms)
    return Answered(done, job, planned, timings, missed)
