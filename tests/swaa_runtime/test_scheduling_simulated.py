"""The scheduler over simulated time: a clock that moves by what each step is predicted to take. No model."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from swaa_runtime.config import FAIR_SHARE, MIN_PREFILL_TOKENS, EngineConfig, SchedulingPolicy
from swaa_runtime.kv_cache.manager import KVCacheManager
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import Request, SamplingParams, Status
from swaa_runtime.scheduler import Scheduler
from swaa_runtime.step_rules import BESIDES_SHARE
from tests.swaa_runtime.builders import FakeClock, LinearCost, TwoBasesCost, build_request, engine_config

RECIPES = (
    Recipe(),
    Recipe(window=16, sink_tokens=2),
    Recipe(window=16, sink_tokens=2, full_layers="1::2", full_decode=True),
    Recipe(window=16, sink_tokens=2, full_tail=4),
)


@dataclass(slots=True)
class Simulation:
    """Requests come when they arrive; a step takes what `cost` says; preempted states are copied in no time."""

    config: EngineConfig
    cost: LinearCost
    clock: FakeClock = field(default_factory=lambda: FakeClock(0.0))
    scheduler: Scheduler = field(init=False)
    steps_since_admission: dict[str, int] = field(default_factory=dict)
    steps_to_first_token: dict[str, int] = field(default_factory=dict)
    num_preemptions: int = 0
    longest_halt_ms: float = 0.0  # of prompts that are ready, while answers get ahead
    _halt_ms: float = 0.0

    def __post_init__(self) -> None:
        config = self.config
        manager = KVCacheManager(config.num_blocks, config.block_size_tokens, config.max_step_tokens)
        self.scheduler = Scheduler(manager, config, self.cost, self.clock)

    def run(self, trace: list[Request]) -> None:
        """Until all of the trace, which is in order of arrival, has ended."""
        coming = list(trace)
        while coming or self.scheduler.requests:
            if not self.scheduler.requests:
                self.clock.now_s = max(self.clock.now_s, coming[0].arrival_s)
            while coming and coming[0].arrival_s <= self.clock.now_s:
                self.scheduler.add(coming.pop(0))
            self.step()

    def step(self) -> None:
        scheduler = self.scheduler
        admitted = scheduler.admit()
        for request in scheduler.preempt(lambda _: 1, free_bytes=1000):
            self.num_preemptions += 1
            scheduler.manager.free(request)
            scheduler.requeue(request)
            self.steps_since_admission.pop(request.request_id)
            admitted += scheduler.admit()
        for request in admitted:
            self.steps_since_admission[request.request_id] = 0
        scheduled = scheduler.schedule()
        step_ms = self.cost.step_ms(scheduled)
        self.clock.now_s += step_ms / 1e3
        halted = all(chunk.request.is_decoding for chunk in scheduled)
        if halted and any(not request.is_decoding for request in scheduler.running):
            self._halt_ms += step_ms
            self.longest_halt_ms = max(self.longest_halt_ms, self._halt_ms)
        else:
            self._halt_ms = 0.0
        for request in scheduler.running:
            self.steps_since_admission[request.request_id] += not halted
        for chunk in scheduled:
            self.advance(chunk.request, chunk.num_tokens)

    def advance(self, request: Request, num_tokens: int) -> None:
        request.num_computed_tokens += num_tokens
        if request.num_remaining_tokens:
            self.scheduler.manager.release_unseen(request)
            return
        if request.first_token_s is None:
            request.first_token_s = self.clock.now_s
            self.steps_to_first_token[request.request_id] = self.steps_since_admission[request.request_id]
        request.token_ids.append(0)
        self.scheduler.manager.release_unseen(request)
        if request.num_generated_tokens == request.sampling.max_tokens:
            request.deadline_s = self.clock.now_s  # nothing reads it here: when it ended
            self.scheduler.retire(request)
            self.scheduler.manager.free(request)


# Nothing starves.


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 2.0),  # arrival
            st.integers(1, 300),  # prompt
            st.integers(1, 12),  # answer
            st.sampled_from(RECIPES),
            st.integers(-1, 1),  # priority
            st.sampled_from([None, 0.05, 0.5, 5.0]),  # due after
            st.sampled_from([None, 1.0, 20.0]),  # target per token
        ),
        min_size=1,
        max_size=14,
    ),
    st.sampled_from([16, 64]),
    st.sampled_from(["slack", "fcfs"]),
    st.sampled_from([0.0, 4.0]),  # what steps with prompts take besides
)
def test_every_admitted_request_gets_its_first_token_within_a_bound(
    asked: list[tuple[float, int, int, Recipe, int, float | None, float | None]],
    max_step_tokens: int,
    policy: SchedulingPolicy,
    prompt_ms: float,
) -> None:
    """Of steps with prompts; and those stand still for a while at most."""
    config = engine_config(
        num_blocks=500, max_step_tokens=max_step_tokens, max_running=6, max_waiting=50, policy=policy
    )
    trace = []
    for index, (at_s, prompt, answer, recipe, priority, due_s, tpot_ms) in enumerate(sorted(asked, key=lambda a: a[0])):
        sampling = SamplingParams(max_tokens=answer)
        request = build_request(str(index), [0] * prompt, recipe, sampling=sampling, priority=priority, tpot_ms=tpot_ms)
        request.arrival_s, request.ttft_due_s = at_s, None if due_s is None else at_s + due_s
        trace.append(request)
    cost = TwoBasesCost(fixed_ms=2.0, token_ms=0.5, prompt_ms=prompt_ms)
    simulation = Simulation(config, cost)
    simulation.run(trace)
    assert all(request.status is Status.FINISHED for request in trace)
    assert simulation.longest_halt_ms <= (prompt_ms + cost.token_ms) / BESIDES_SHARE
    if policy == "fcfs":
        return  # it starves nobody either, but has no such bound
    least_prefill = min(MIN_PREFILL_TOKENS, max_step_tokens - config.max_running)
    per_step = max(1, int(least_prefill * FAIR_SHARE) // config.max_running)
    for request in trace:
        assert simulation.steps_to_first_token[request.request_id] <= -(-request.prompt_stop // per_step)


# Ends of prompts.


def test_whoever_is_done_does_not_wait_for_what_would_fill_its_last_step() -> None:
    """Two prompts of two steps each, come at once: the first has its token when it is done, the other hardly later."""
    config = engine_config(num_blocks=500, max_step_tokens=1024, max_running=6)
    cost = LinearCost(fixed_ms=20.0, token_ms=0.25)
    trace = [build_request(name, [0] * 1100, sampling=SamplingParams(max_tokens=1)) for name in "ab"]
    for request in trace:
        request.arrival_s = 0.0
    Simulation(config, cost).run(trace)
    first_ms, second_ms = ((request.first_token_s or 0.0) * 1e3 for request in trace)
    alone_ms, both_ms = 2 * 20 + 1100 * 0.25, 3 * 20 + 2200 * 0.25
    assert first_ms < alone_ms / (1 - FAIR_SHARE / 2) + 20
    assert second_ms <= both_ms + 20


# More due times are met.


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of traffic: how much of it, prompt and answer in tokens, and what it aims at."""

    weight: float
    prompt_tokens: tuple[int, int]
    answer_tokens: int
    ttft_s: float
    tpot_ms: float
    priority: int


KINDS = (
    Kind(0.6, (100, 600), 30, ttft_s=1.0, tpot_ms=60.0, priority=20),
    Kind(0.3, (1000, 3000), 40, ttft_s=6.0, tpot_ms=100.0, priority=10),
    Kind(0.1, (8000, 12000), 20, ttft_s=60.0, tpot_ms=400.0, priority=0),
)
FIXED_MS, TOKEN_MS = 8.0, 0.5


def mixed_trace(load: float, count: int = 300, seed: int = 1) -> list[Request]:
    """Poisson arrivals whose prefill alone is `load` of what the simulated machine can do."""
    rng = random.Random(seed)
    mean_tokens = sum(kind.weight * sum(kind.prompt_tokens) / 2 for kind in KINDS)
    rate = load / (mean_tokens * (TOKEN_MS + FIXED_MS / 1024) / 1e3)
    at_s, trace = 0.0, []
    for index in range(count):
        at_s += rng.expovariate(rate)
        [kind] = rng.choices(KINDS, [kind.weight for kind in KINDS])
        request = build_request(
            str(index),
            [0] * rng.randint(*kind.prompt_tokens),
            sampling=SamplingParams(max_tokens=kind.answer_tokens),
            priority=kind.priority,
            ttft_due_s=at_s + kind.ttft_s,
            tpot_ms=kind.tpot_ms,
        )
        request.arrival_s = at_s
        trace.append(request)
    return trace


def num_met(load: float, policy: SchedulingPolicy) -> tuple[int, Simulation]:
    """Requests of the trace whose first token and whose mean time per token were in time."""
    config = engine_config(
        num_blocks=6000,
        block_size_tokens=32,
        max_step_tokens=1024,
        max_running=64,
        max_waiting=1000,
        max_model_tokens=20_000,
        policy=policy,
    )
    simulation, trace = Simulation(config, LinearCost(FIXED_MS, TOKEN_MS)), mixed_trace(load)
    simulation.run(trace)
    met = 0
    for request in trace:
        assert request.first_token_s is not None
        assert request.ttft_due_s is not None
        assert request.deadline_s is not None
        assert request.tpot_ms is not None
        mean_ms = (request.deadline_s - request.first_token_s) * 1e3 / (request.num_generated_tokens - 1)
        met += request.first_token_s <= request.ttft_due_s and mean_ms <= request.tpot_ms
    return met, simulation


def test_under_overload_far_more_due_times_are_met_than_first_come_first_served() -> None:
    by_slack, _ = num_met(1.2, "slack")
    by_arrival, _ = num_met(1.2, "fcfs")
    assert by_slack >= by_arrival + 100


def test_at_half_load_none_is_missed() -> None:
    met, _ = num_met(0.5, "slack")
    assert met == 300
