"""Decides which requests run how many tokens in the next step. No model, no tensors.

There is no prefill phase and no decode phase: every running request has tokens that are known but not computed, one
while it decodes and many while its prompt is being prefilled, and `num_computed_tokens` catches up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from swaa_runtime.batch import ScheduledChunk
from swaa_runtime.errors import OutOfCapacity
from swaa_runtime.kv_cache.manager import KVCacheManager
from swaa_runtime.load import DecodeLoad, EngineLoad, PrefillLoad
from swaa_runtime.prefill_times import PrefillTimes
from swaa_runtime.request import Request, Status
from swaa_runtime.step_cost import StepCost, UnknownCost


class Scheduler:
    """Admission by reserved KV memory, then one token budget per step, shared.

    A request is admitted once all the memory it can come to need is set aside, so a running request never has to be
    evicted. Waiting requests are admitted by priority, then by arrival; one that does not fit holds back those behind
    it, so that a large one is never starved by small ones.
    """

    def __init__(
        self,
        manager: KVCacheManager,
        max_step_tokens: int,
        max_running: int,
        max_waiting: int,
        cost: StepCost | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.manager = manager
        self._clock = clock
        self.set_cost(cost or UnknownCost())
        self._max_step_tokens = max_step_tokens
        self._max_running = max_running
        self._max_waiting = max_waiting
        self.waiting: list[Request] = []
        self.running: list[Request] = []

    def set_cost(self, cost: StepCost) -> None:
        """What steps are expected to take, now that it has been measured."""
        self._cost = cost
        self._prefill_times = PrefillTimes(cost, self._clock)

    @property
    def requests(self) -> list[Request]:
        """All requests, waiting and running."""
        return [*self.running, *self.waiting]

    def add(self, request: Request) -> None:
        """Queue a request. Raises OutOfCapacity if the queue is full or the request could never fit."""
        if len(self.waiting) >= self._max_waiting:
            raise OutOfCapacity(f"{self._max_waiting} requests are waiting already; try again later")
        self.manager.check_fits(request)
        self.waiting.append(request)
        self.waiting.sort(key=_order)

    def admit(self) -> list[Request]:
        """Move waiting requests to running while memory lasts; returns those moved."""
        admitted: list[Request] = []
        while self.waiting and len(self.running) < self._max_running and self.manager.reserve(self.waiting[0]):
            request = self.waiting.pop(0)
            self.run(request)
            admitted.append(request)
        return admitted

    def schedule(self) -> list[ScheduledChunk]:
        """The next step: at most `max_step_tokens` tokens, each running request getting its fair share of them."""
        ready = [request for request in self.running if not request.paused and request.num_ready_tokens]
        shares = share_budget(ready, self._max_step_tokens)
        scheduled = []
        for request, num_tokens in shares:
            self.manager.extend(request, request.num_computed_tokens + num_tokens)
            scheduled.append(ScheduledChunk(request, num_tokens))
        return scheduled

    @property
    def is_full(self) -> bool:
        """Whether nothing more may run now: enough is running, or others wait that came first."""
        return bool(self.waiting) or len(self.running) >= self._max_running

    @property
    def needs_memory(self) -> bool:
        """Whether requests wait for nothing but KV memory."""
        return bool(self.waiting) and len(self.running) < self._max_running

    def run(self, request: Request) -> None:
        """Run a request at once that has its memory already."""
        request.status = Status.RUNNING
        self.running.append(request)

    def retire(self, request: Request) -> None:
        """Take a request out, wherever it stands. It keeps what it holds until somebody frees that."""
        (self.waiting if request.status is Status.WAITING else self.running).remove(request)
        request.status = Status.FINISHED
        self._prefill_times.forget(request.request_id)

    def load(self) -> EngineLoad:
        """What there is to do yet."""
        decoding = [request for request in self.running if request.is_decoding]
        prefills = [request for request in self.requests if not request.is_decoding]
        step_ms = self._cost.step_ms([ScheduledChunk(request, 1) for request in decoding]) if decoding else 0.0
        return EngineLoad(
            self._clock(),
            tuple(self._prefill_load(request) for request in prefills),
            tuple(DecodeLoad(request.request_id, request.tpot_ms, request.priority) for request in decoding),
            step_ms,
        )

    def _prefill_load(self, request: Request) -> PrefillLoad:
        return PrefillLoad(
            request.request_id,
            self._prefill_times.ms(request),
            request.ttft_due_s,
            request.priority,
            request.status is Status.WAITING,
        )


def share_budget(requests: Iterable[Request], budget_tokens: int) -> list[tuple[Request, int]]:
    """Divide a token budget: decoding requests first, then by priority, and equally within one priority.

    Equal shares with what is left over passed on (max-min fairness): whoever needs less than an equal share gets all it
    needs, so one token of a decoding request, or a short prompt, never waits behind a long prompt.
    """
    groups: dict[int, list[Request]] = {}
    for request in requests:
        decoding = request.num_remaining_tokens == 1
        groups.setdefault(-(2**31) if decoding else -request.priority, []).append(request)
    shares: list[tuple[Request, int]] = []
    for key in sorted(groups):
        group = sorted(groups[key], key=lambda request: (request.num_ready_tokens, request.arrival_s))
        for index, request in enumerate(group):
            share = -(-budget_tokens // (len(group) - index))
            num_tokens = min(request.num_ready_tokens, share, budget_tokens)
            if num_tokens > 0:
                shares.append((request, num_tokens))
                budget_tokens -= num_tokens
    return shares


def _order(request: Request) -> tuple[int, float]:
    return (-request.priority, request.arrival_s)
