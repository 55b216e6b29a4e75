"""The correction learns how fast a machine is, from steps that a simulated one runs; stalls do not swing it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cost import CostProfile, chunk_work, count_layers, decode_keys, prefill_work, step_work
from services.replica.online_cost import MAX_FACTOR, MEMORY_STEPS, OnlineCost
from swaa_runtime.batch import ScheduledChunk
from swaa_runtime.recipe import LayerRule, Recipe
from swaa_runtime.request import Request, SamplingParams
from tests.swaa_runtime.builders import build_request

PROFILE = CostProfile(
    model_fingerprint="m",
    hardware="simulated",
    measured_at="2026-01-01T00:00:00+00:00",
    max_step_tokens=100,
    prompt_step_ms=5.0,
    token_ms=0.5,
    pair_ns=100.0,
    window_pair_ns=50.0,
    decode_step_ms=20.0,
    decode_key_ns=1000.0,
    restore_ms_per_mib=1.0,
    window_query_ns=300.0,
    key_ns=10.0,
    call_ns=1000.0,
    decode_row_ms=2.0,
)


def request_at(num_computed: int, prompt: int = 400, recipe: Recipe | None = None) -> Request:
    request = build_request("r", prompt, recipe or Recipe(window=64, sink_tokens=4, full_decode=True))
    request.token_ids += [1] * max(0, num_computed + 1 - prompt)
    request.num_computed_tokens = num_computed
    return request


def prompt_step(start: int = 100, num_tokens: int = 100) -> list[ScheduledChunk]:
    return [ScheduledChunk(request_at(start), num_tokens)]


def answer_step(count: int = 1) -> list[ScheduledChunk]:
    return [ScheduledChunk(request_at(410 + index), 1) for index in range(count)]


def mixed_step() -> list[ScheduledChunk]:
    return [*prompt_step(), *answer_step()]


class Machine:
    """Takes what the profile says, times how slow it is: for prompts, answers, and what prompts' steps take besides."""

    def __init__(self, prompts: float = 1.0, answers: float = 1.0, besides: float | None = None) -> None:
        self._truth = OnlineCost(PROFILE.corrected(prompts if besides is None else besides, prompts, answers))

    def took_ms(self, chunks: Sequence[ScheduledChunk]) -> float:
        return self._truth.step_ms(chunks)


def run(cost: OnlineCost, machine: Machine, steps: int, make: Callable[[], list[ScheduledChunk]]) -> None:
    for _ in range(steps):
        chunks = make()
        cost.observe(chunks, machine.took_ms(chunks))


def test_until_something_was_seen_the_profile_holds() -> None:
    cost = OnlineCost(PROFILE)
    assert cost.profile == PROFILE
    request = request_at(0)
    work = prefill_work(request.rules, request.turns, 0, 400)
    assert cost.prefill_ms(request) == pytest.approx(PROFILE.prefill_ms(work))


@pytest.mark.parametrize("make", [prompt_step, partial(answer_step, 3), mixed_step])
def test_a_step_takes_what_its_chunks_take(make: Callable[[], list[ScheduledChunk]]) -> None:
    chunks = make()
    works = [
        chunk_work(count_layers(chunk.request.rules), chunk.request.turns, chunk.start, chunk.num_tokens)
        for chunk in chunks
    ]
    assert OnlineCost(PROFILE).step_ms(chunks) == pytest.approx(PROFILE.step_ms(step_work(works)))


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(window=16, sink_tokens=2, full_tail=30)])
def test_a_prefill_takes_as_long_as_its_steps(recipe: Recipe) -> None:
    cost = OnlineCost(PROFILE)
    steps = [[ScheduledChunk(request_at(start, 350, recipe), min(100, 350 - start))] for start in range(0, 350, 100)]
    assert cost.prefill_ms(request_at(0, 350, recipe)) == pytest.approx(sum(cost.step_ms(step) for step in steps))


def test_what_a_chunk_takes_besides_is_that_of_what_is_left_of_the_prompt() -> None:
    cost = OnlineCost(PROFILE)
    request = request_at(100, 350, Recipe())
    planned_ms = PROFILE.chunk_ms({LayerRule(): len(request.rules)}, request.turns, 100, 350)
    assert cost.chunk_ms(request) == pytest.approx(planned_ms)
    assert planned_ms > 0.0
    assert cost.chunk_ms(request_at(350, 350, Recipe())) == 0.0


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(window=32, sink_tokens=4), Recipe(window=32, full_decode=True)])
def test_a_token_of_an_answer_takes_what_a_step_with_one_answer_more_does(recipe: Recipe) -> None:
    """As the planner predicts it, from profile and lengths alone; the replica from requests, as it has learnt."""
    request = build_request("r", [0] * 400, recipe, sampling=SamplingParams(max_tokens=100))
    planned_ms = PROFILE.tpot_ms(decode_keys(request.rules, 400 + 100 // 2)) - PROFILE.decode_step_ms
    cost = OnlineCost(PROFILE)
    assert cost.answer_ms(request) == pytest.approx(planned_ms)
    run(cost, Machine(answers=2.0), 50, answer_step)
    assert cost.answer_ms(request) == pytest.approx(2.0 * planned_ms, rel=0.01)


def test_what_is_computed_or_answered_already_needs_no_time() -> None:
    cost = OnlineCost(PROFILE)
    assert cost.prefill_ms(request_at(300)) < cost.prefill_ms(request_at(0)) / 3
    request = request_at(0)
    request.num_computed_tokens = len(request.token_ids)
    assert cost.prefill_ms(request) == 0.0


@pytest.mark.parametrize("slowness", [2.0, 0.5, 1.3, 1.0])
@pytest.mark.parametrize("make", [prompt_step, answer_step, mixed_step])
def test_a_few_steps_tell_how_slow_a_machine_is(slowness: float, make: Callable[[], list[ScheduledChunk]]) -> None:
    cost, machine = OnlineCost(PROFILE), Machine(slowness, slowness)
    run(cost, machine, 8, make)
    assert cost.step_ms(make()) == pytest.approx(machine.took_ms(make()), rel=0.1)
    run(cost, machine, 30, make)
    assert cost.step_ms(make()) == pytest.approx(machine.took_ms(make()), rel=1e-3)


def test_prompts_and_answers_are_learnt_apart() -> None:
    cost, machine = OnlineCost(PROFILE), Machine(prompts=2.0, answers=0.5)
    run(cost, machine, 40, prompt_step)
    assert cost.step_ms(answer_step()) == pytest.approx(OnlineCost(PROFILE).step_ms(answer_step()))
    run(cost, machine, 40, answer_step)
    assert cost.step_ms(mixed_step()) == pytest.approx(machine.took_ms(mixed_step()), rel=1e-3)
    profile = cost.profile
    assert profile.decode_key_ns == pytest.approx(PROFILE.decode_key_ns / 2, rel=1e-3)
    assert profile.restore_ms_per_mib == PROFILE.restore_ms_per_mib


@pytest.mark.parametrize(("besides", "growing"), [(3.0, 0.5), (0.3, 1.5), (1.0, 1.0)])
def test_long_and_short_steps_of_prompts_are_learnt_apart(besides: float, growing: float) -> None:
    """Also where both are wrong, as measured on a machine that was busy."""
    cost, machine = OnlineCost(PROFILE), Machine(growing, besides=besides)
    steps = [partial(prompt_step, num_tokens=num_tokens) for num_tokens in (100, 1, 60, 3, 80)]
    for _ in range(12):
        for step in steps:
            run(cost, machine, 1, step)
    for step in steps:
        assert cost.step_ms(step()) == pytest.approx(machine.took_ms(step()), rel=0.05)
    assert cost.profile.prompt_step_ms == pytest.approx(besides * PROFILE.prompt_step_ms, rel=0.1)
    assert cost.profile.token_ms == pytest.approx(growing * PROFILE.token_ms, rel=0.05)


@given(st.integers(0, 2**31), st.sampled_from([1.0, 2.0, 0.6]), st.floats(5.0, 1e6))
@settings(deadline=None, max_examples=30)
def test_a_stall_now_and_then_does_not_swing_it(seed: int, slowness: float, stall: float) -> None:
    """One of every five steps stalls, so never more than two of five in a row; the others vary by a twentieth."""
    rng, cost, machine = random.Random(seed), OnlineCost(PROFILE), Machine(slowness, slowness)
    for _ in range(12):
        stalled = rng.sample(range(MEMORY_STEPS), 1)
        for index in range(MEMORY_STEPS):
            chunks = prompt_step()
            noise = stall if index in stalled else rng.uniform(0.95, 1.05)
            cost.observe(chunks, machine.took_ms(chunks) * noise)
    assert cost.step_ms(prompt_step()) == pytest.approx(machine.took_ms(prompt_step()), rel=0.06)


def test_a_stall_in_the_first_step_of_all_moves_nothing() -> None:
    cost = OnlineCost(PROFILE)
    cost.observe(prompt_step(), 1e6)
    assert cost.profile == PROFILE


@given(st.lists(st.floats(1e-6, 1e12), max_size=40))
@settings(deadline=None, max_examples=50)
def test_the_correction_is_bounded_whatever_is_observed(times_ms: list[float]) -> None:
    cost = OnlineCost(PROFILE)
    for took_ms in times_ms:
        cost.observe(prompt_step(), took_ms)
    assert cost.profile.token_ms / PROFILE.token_ms * (1 + 1e-9) >= 1 / MAX_FACTOR
    assert cost.profile.token_ms / PROFILE.token_ms <= MAX_FACTOR * (1 + 1e-9)


def test_steps_of_which_nothing_is_known_teach_nothing() -> None:
    free = PROFILE.corrected(0.0, 0.0, 0.0)
    cost = OnlineCost(free)
    cost.observe(prompt_step(), 10.0)
    cost.observe(answer_step(), 0.0)
    assert cost.profile == free


def test_the_profile_can_be_read_while_the_engine_learns() -> None:
    cost, machine, done = OnlineCost(PROFILE), Machine(2.0, 2.0), threading.Event()

    def learn() -> None:
        run(cost, machine, 200, mixed_step)
        done.set()

    thread = threading.Thread(target=learn)
    thread.start()
    while not done.is_set():
        profile = cost.profile
        scale = profile.token_ms / PROFILE.token_ms
        assert profile.pair_ns / PROFILE.pair_ns == pytest.approx(scale), "prices of one profile are of one moment"
    thread.join()


def test_requests_that_have_come_and_gone_are_not_kept() -> None:
    cost = OnlineCost(replace(PROFILE))
    for _ in range(1100):
        cost.prefill_ms(request_at(0, 10))
    assert len(cost._layers._counted) <= 1024
