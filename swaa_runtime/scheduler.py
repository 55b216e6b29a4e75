"""Decides which requests run how many tokens in the next step. No model, no tensors.

There is no prefill phase and no decode phase: every running request has tokens that are known but not computed, one
while it decodes and many while its prompt is being prefilled, and `num_computed_tokens` catches up.

add ──▶ waiting ──admit──▶ running ──retire──▶
           ▲                  │ preempt
           └──requeue── leaving, its state on the way to host memory
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from functools import cache

from swaa_runtime.batch import ScheduledChunk
from swaa_runtime.config import FAIR_SHARE, MIN_PREFILL_TOKENS, TPOT_SHARE, EngineConfig
from swaa_runtime.errors import OutOfCapacity
from swaa_runtime.interruption import newcomers, num_interruptions
from swaa_runtime.kv_cache.manager import KVCacheManager
from swaa_runtime.load import DecodeLoad, EngineLoad, PrefillLoad
from swaa_runtime.preemption import Candidate, Lack, Need, choose_victims, wait_ms
from swaa_runtime.prefill_times import PrefillTimes
from swaa_runtime.request import Request, Status
from swaa_runtime.step_budget import (
    chunks,
    most_tokens_within,
    share_prefill,
    step_limit_ms,
    strictest_target_ms,
    tokens_to_finish,
)
from swaa_runtime.step_cost import StepCost, UnknownCost
from swaa_runtime.step_rules import ahead_ms, ends_with_first
from swaa_runtime.urgency import Urgency, slack_ms, urgency

HOLD_S = 5.0
"""Smaller requests may pass a waiting one that does not fit and aims at no time so long; then they wait behind it."""

AGED_S = 30.0
"""Of those that have waited longer than this for admission the oldest is next, however urgent others are."""


def no_room(num_blocks: int) -> bool:
    """There is nothing that could be given up for so many blocks."""
    return False


class Scheduler:
    """Admission by reserved KV memory, then one token budget per step, shared.

    A request is admitted once all the memory it can come to need is set aside. Who is served first, in admission and
    prefill alike, says `urgency`; how a step's tokens are divided, `step_budget`; who makes room for a request that
    would otherwise be late, `preemption`. Under the policy "fcfs" all of this is by arrival, and nobody makes room.

    Args:
        cost: what steps are expected to take.
        clock: in seconds; due times are told on it.
        chunk_multiple: where a prompt's chunks end, if they can (see `chunks`).
    """

    def __init__(
        self,
        manager: KVCacheManager,
        config: EngineConfig,
        cost: StepCost | None = None,
        clock: Callable[[], float] = time.monotonic,
        chunk_multiple: int = 1,
    ) -> None:
        self.manager = manager
        self._chunk_multiple = chunk_multiple
        self._config = config
        self._by_arrival = config.policy == "fcfs"
        self._clock = clock
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.leaving: list[Request] = []
        self.num_preemptions = 0
        self._left_out: frozenset[str] = frozenset()
        self.set_cost(cost or UnknownCost())

    def set_cost(self, cost: StepCost) -> None:
        """What steps are expected to take, now that it has been measured."""
        self._cost = cost
        self._prefill_times = PrefillTimes(cost, self._clock)

    @property
    def requests(self) -> list[Request]:
        """All requests, wherever they stand."""
        return [*self.running, *self.leaving, *self.waiting]

    @property
    def is_full(self) -> bool:
        """Whether nothing more may run now: enough is running, or others wait that came first."""
        waiting = any(not request.paused for request in self.waiting)
        return waiting or len(self.running) >= self._config.max_running

    # Ways in and out.

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            OutOfCapacity: if too many wait, too much work is queued, or the request could never fit.
        """
        if len(self.waiting) >= self._config.max_waiting:
            raise OutOfCapacity(f"{self._config.max_waiting} requests are waiting already; try again later")
        self._check_queued_work()
        self.manager.check_fits(request)
        request.queued_s = self._clock()
        self.waiting.append(request)

    def _check_queued_work(self) -> None:
        bound_ms = self._config.max_queued_ms
        if bound_ms is None:
            return
        queued_ms = sum(self._prefill_times.ms(request) for request in self.requests if not request.is_decoding)
        if queued_ms > bound_ms:
            raise OutOfCapacity(
                f"the predicted wait is {queued_ms:.0f} ms, max_queued_ms is {bound_ms:.0f} ms; try again later"
            )

    def run(self, request: Request) -> None:
        """Run a request at once that has its memory already."""
        request.status = Status.RUNNING
        self.running.append(request)

    def requeue(self, request: Request) -> None:
        """A leaving request has left: it waits to be admitted again."""
        self.leaving.remove(request)
        request.status = Status.WAITING
        request.queued_s = self._clock()
        self.waiting.append(request)

    def retire(self, request: Request) -> None:
        """Take a request out, wherever it stands. It keeps what it holds until somebody frees that."""
        places = {Status.WAITING: self.waiting, Status.RUNNING: self.running, Status.LEAVING: self.leaving}
        places[request.status].remove(request)
        request.status = Status.FINISHED
        self._prefill_times.forget(request.request_id)

    # Admission.

    def admit(self, make_room: Callable[[int], bool] = no_room) -> list[Request]:
        """Move waiting requests to running while memory lasts; returns those moved.

        Args:
            make_room: gives up what nobody runs with for so many more blocks; False if that is not enough.
        """
        admitted: list[Request] = []
        order = self._admission_order() if len(self.running) < self._config.max_running else []
        for request in order:
            if len(self.running) >= self._config.max_running:
                break
            if self._reserve(request, make_room):
                self.waiting.remove(request)
                self.run(request)
                admitted.append(request)
            elif self._holds_back(request):
                break
        return admitted

    def _admission_order(self) -> list[Request]:
        """Who is next. A preempted request whose reader is slow waits until that has caught up."""
        order = self._in_order([request for request in self.waiting if not request.paused])
        if order and not self._by_arrival:
            oldest = min(order, key=lambda request: request.queued_s)
            if self._clock() - oldest.queued_s > AGED_S:
                order.remove(oldest)
                order.insert(0, oldest)
        return order

    def _reserve(self, request: Request, make_room: Callable[[int], bool]) -> bool:
        if self.manager.reserve(request):
            return True
        lacking = self.manager.max_blocks(request) - self.manager.num_unreserved_blocks
        return make_room(lacking) and self.manager.reserve(request)

    def _holds_back(self, request: Request) -> bool:
        """Whether those behind one that does not fit have to wait, lest it waits for ever or too long."""
        if self._by_arrival or self._clock() - request.queued_s > HOLD_S:
            return True
        return 0 <= self._slack_ms(request) < float("inf")

    def preempt(
        self, size_bytes: Callable[[Request], int | None], free_bytes: int, spare_blocks: int = 0
    ) -> list[Request]:
        """Take requests out for the most urgent one that waits, if it would be late otherwise. Call after `admit`.

        They are `leaving` from then on: they run nothing, and hold their memory until whoever moves their state has
        freed that and calls `requeue`. Only then are others taken out.

        Args:
            size_bytes: host memory for a request's state; None if it cannot be moved now.
            free_bytes: how much of that there is.
            spare_blocks: blocks that `make_room` would give up.
        """
        if self._by_arrival or self.leaving or not self.running or not self.waiting:
            return []
        target = next(iter(self._admission_order()), None)
        if target is None or not 0 <= (slack := self._slack_ms(target)) < float("inf"):
            return []
        lack = Lack(
            num_blocks=max(0, self.manager.max_blocks(target) - self.manager.num_unreserved_blocks - spare_blocks),
            num_slots=max(0, len(self.running) + 1 - self._config.max_running),
        )
        ends_in_ms = self._ends_in_ms(self.running)
        candidates = [
            Candidate(running, self._slack_ms(running), ends_in_ms[running.request_id], size_bytes(running))
            for running in self.running
        ]
        if wait_ms(lack, candidates) <= slack:
            return []
        stays_ms = self._ends_in_ms([*self.running, target])[target.request_id]
        victims = choose_victims(Need(target, slack, stays_ms, lack), candidates, free_bytes)
        for request in victims:
            self.running.remove(request)
            self.leaving.append(request)
            request.status = Status.LEAVING
            request.num_preemptions += 1
            self.num_preemptions += 1
            request.preempted_at_tokens = request.num_computed_tokens
        return victims

    def _ends_in_ms(self, requests: Sequence[Request]) -> dict[str, float]:
        """When each of these would be done if nobody else ran, generating all it may.

        More urgent prompts go first. While there are any, answers get no more tokens than their targets ask for, and
        hold their memory for as long.
        """
        decoding = [request for request in requests if request.is_decoding]
        prompts = self._in_order([request for request in requests if not request.is_decoding])
        decode_step_ms, prefill_ms = self._decode_step_ms(requests), self._prefill_times.ms
        targets = [request.tpot_ms * TPOT_SHARE for request in decoding if request.tpot_ms is not None]
        paced_ms = max(decode_step_ms, min(targets, default=float("inf")))
        first_token_ms: dict[str, float] = {}
        prefilled_ms = 0.0
        for request in prompts:
            prefilled_ms += prefill_ms(request)
            first_token_ms[request.request_id] = prefilled_ms

        def ends_in_ms(request: Request) -> float:
            since_ms, left_tokens = first_token_ms.get(request.request_id, 0.0), _left_tokens(request)
            return since_ms + min(left_tokens * paced_ms, prefilled_ms - since_ms + left_tokens * decode_step_ms)

        return {request.request_id: ends_in_ms(request) for request in requests}

    # Order.

    def _slack_ms(self, request: Request) -> float:
        if request.is_decoding:
            return slack_ms(request.next_token_due_s(), self._clock(), 0.0)
        return slack_ms(request.ttft_due_s, self._clock(), self._prefill_times.ms(request))

    def _urgency(self, request: Request) -> Urgency:
        if self._by_arrival:
            return (False, 0.0, 0, request.arrival_s)
        return urgency(request, self._slack_ms(request))

    def _in_order(self, requests: Sequence[Request]) -> list[Request]:
        return sorted(requests, key=self._urgency) if len(requests) > 1 else list(requests)

    # Steps.

    def schedule(self, interruptible: bool = False) -> list[ScheduledChunk]:
        """The next step: at most `max_step_tokens` tokens, one for each decoding request, the rest prefill.

        Args:
            interruptible: newcomers can run before the step and between its layers. So a long one leaves out those who
                are the first to: in it, they would wait for all of it.
        """
        self._left_out = frozenset()
        ready = self._ready()
        decodes = [ScheduledChunk(request, 1) for request in ready if request.is_decoding]
        prefills = self._in_order([request for request in ready if not request.is_decoding])
        scheduled = self._step(decodes, prefills)
        if interruptible and self.num_interruptions(scheduled):
            first = frozenset(request.request_id for request in newcomers(prefills, self._config.interrupt_tokens))
            others = [request for request in prefills if request.request_id not in first]
            if first and self.num_interruptions(without := self._step(decodes, others)):
                scheduled, self._left_out = without, first
        return self._extended(scheduled)

    def num_interruptions(self, scheduled: Sequence[ScheduledChunk]) -> int:
        """How often newcomers may interrupt such a step."""
        return 0 if self._by_arrival else num_interruptions(scheduled, self._config.interrupt_tokens)

    def schedule_newcomers(self, in_flight: Collection[str]) -> list[ScheduledChunk]:
        """A step that brings the first tokens of newcomers, to interrupt one that runs requests `in_flight`.

        First of those that were left out of it, whoever else has come: nothing that runs ever stands still.
        """
        ready = [request for request in self._ready() if request.request_id not in in_flight]
        prefills = self._in_order([request for request in ready if not request.is_decoding])
        prefills.sort(key=lambda request: request.request_id not in self._left_out)
        chosen = newcomers(prefills, self._config.interrupt_tokens)
        return self._extended([ScheduledChunk(request, request.num_remaining_tokens) for request in chosen])

    def _ready(self) -> list[Request]:
        return [request for request in self.running if not request.paused and request.num_ready_tokens]

    def _step(self, decodes: Sequence[ScheduledChunk], prefills: Sequence[Request]) -> list[ScheduledChunk]:
        ready_tokens = sum(request.num_ready_tokens for request in prefills)
        tokens = min(self._config.max_step_tokens - len(decodes), ready_tokens)
        if prefills and not self._by_arrival:

            @cache  # the whole step is looked at by both, and by the search for the most tokens
            def step_ms(tokens: int) -> float:
                return self._cost.step_ms([*decodes, *self._share(prefills, tokens)])

            tokens = self._worthwhile_tokens(decodes, prefills, tokens, step_ms)
            tokens = self._timely_tokens(decodes, prefills, tokens, step_ms)
        return [*decodes, *self._share(prefills, tokens)]

    def _extended(self, scheduled: list[ScheduledChunk]) -> list[ScheduledChunk]:
        """The same, once there are blocks for what they compute."""
        for chunk in scheduled:
            self.manager.extend(chunk.request, chunk.start + chunk.num_tokens)
        return scheduled

    def _share(self, prefills: Sequence[Request], budget_tokens: int) -> list[ScheduledChunk]:
        fair_share = 0 if self._by_arrival else FAIR_SHARE
        return chunks(prefills, share_prefill(prefills, budget_tokens, fair_share), self._chunk_multiple)

    def _worthwhile_tokens(
        self, decodes: Sequence[ScheduledChunk], prefills: Sequence[Request], most: int, step_ms: Callable[[int], float]
    ) -> int:
        """Prefill of a step: all it can hold, or no more than brings the most urgent prompt its end."""
        first, num_prefills = prefills[0], len(prefills)
        fewer = tokens_to_finish(first.num_remaining_tokens, num_prefills)
        if num_prefills < 2 or fewer >= most or first.num_ready_tokens < first.num_remaining_tokens:
            return most
        saved_ms = step_ms(most) - step_ms(fewer)
        return fewer if ends_with_first(saved_ms, self._besides_ms(decodes, first), num_prefills) else most

    def _timely_tokens(
        self, decodes: Sequence[ScheduledChunk], prefills: Sequence[Request], most: int, step_ms: Callable[[int], float]
    ) -> int:
        """What of that may run now, so that no decoding request's next token comes late by it; 0: they go first."""
        if not any(chunk.request.tpot_ms is not None for chunk in decodes):
            return most
        decoding, now_s = [chunk.request for chunk in decodes], self._clock()
        decode_step_ms = self._cost.step_ms(decodes)
        limit_ms = step_limit_ms(decoding, now_s, decode_step_ms)
        if limit_ms is None or (whole_ms := step_ms(most)) <= limit_ms:
            return most
        target_ms = strictest_target_ms(decoding, now_s, decode_step_ms)
        if limit_ms < min(whole_ms, ahead_ms(self._besides_ms(decodes, prefills[0]), decode_step_ms, target_ms)):
            return 0
        least = min(most, max(MIN_PREFILL_TOKENS, len(prefills)))
        return most_tokens_within(limit_ms, least, most, step_ms)

    def _besides_ms(self, decodes: Sequence[ScheduledChunk], prefill: Request) -> float:
        """What a step with prompts takes besides."""
        return self._cost.step_ms([*decodes, ScheduledChunk(prefill, 1)])

    def _decode_step_ms(self, requests: Sequence[Request]) -> float:
        return self._cost.step_ms([ScheduledChunk(request, 1) for request in requests]) if requests else 0.0

    def load(self) -> EngineLoad:
        """What there is to do yet. In order of arrival: whoever foresees the future breaks ties as `urgency` does."""
        requests = sorted(self.requests, key=lambda request: request.arrival_s)
        decoding = [request for request in requests if request.is_decoding]
        return EngineLoad(
            self._clock(),
            tuple(self._prefill_load(request) for request in requests if not request.is_decoding),
            tuple(map(_decode_load, decoding)),
            self._decode_step_ms(decoding),
            0 if self._by_arrival else self._config.interrupt_tokens,
            max((len(request.rules) for request in requests), default=0),
        )

    def _prefill_load(self, request: Request) -> PrefillLoad:
        time = self._prefill_times.of(request)
        return PrefillLoad(
            request.request_id,
            _tokens_to_compute(request),
            time.ms,
            request.ttft_due_s,
            request.priority,
            request.status is not Status.RUNNING,
            request.tpot_ms,
            _left_tokens(request),
            time.answer_ms,
            time.chunk_ms,
        )


def _decode_load(request: Request) -> DecodeLoad:
    return DecodeLoad(request.request_id, request.tpot_ms, request.priority, _left_tokens(request))


def _left_tokens(request: Request) -> int:
    """Tokens that a request may generate yet: whatever runs is for one at least."""
    return max(1, request.num_left_tokens)


def _tokens_to_compute(request: Request) -> int:
    """Tokens of a prompt that are not computed yet, without those whose KV is on its way in."""
    restored = 0
    if request.restoring is not None:
        start, stop = request.restoring
        restored = max(0, stop - max(start, request.num_computed_tokens))
    return max(1, request.num_remaining_tokens - restored)
