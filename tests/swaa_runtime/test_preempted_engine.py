"""Preemption through the whole engine: a state goes to host memory and comes back exactly."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa_runtime.config import EngineConfig
from swaa_runtime.kv_cache.slices import SLICE_TOKENS
from swaa_runtime.outputs import Finished
from swaa_runtime.preemption import MAX_PREEMPTIONS
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import FinishReason, Request, SamplingParams, Status
from tests.swaa_runtime.builders import (
    FakeClock,
    LinearCost,
    Rig,
    assert_equals_oracle,
    build_request,
    build_rig,
    engine_config,
    next_turn,
    random_tokens,
    tiny_model,
)
from tests.swaa_runtime.strategies import recipes

RECIPES = (
    Recipe(),
    Recipe(window=12, sink_tokens=2),
    Recipe(window=1),
    Recipe(window=12, sink_tokens=2, full_layers="1::2", full_decode=True),
    Recipe(window=12, sink_tokens=2, full_tail=5),
    Recipe(window=12, sink_tokens=2, full_tail=5, full_decode=True, lookback_layers="1::2"),
)


def one_at_a_time(config: EngineConfig | None = None) -> tuple[Rig, FakeClock]:
    """An engine with room for one running request, on a clock that stands still."""
    clock = FakeClock()
    rig = build_rig(config=config or engine_config(max_step_tokens=16, max_running=1), clock=clock)
    rig.engine.set_cost(LinearCost())
    return rig, clock


def add_urgent(rig: Rig, clock: FakeClock, name: str, priority: int = 0, max_tokens: int = 2) -> Request:
    """A request that takes 5 ms and is late in 6."""
    sampling = SamplingParams(max_tokens=max_tokens)
    return rig.add(build_request(name, 5, sampling=sampling, priority=priority, ttft_due_s=clock.now_s + 0.006))


def step_until_computed(rig: Rig, request: Request, num_tokens: int) -> None:
    while request.num_computed_tokens < num_tokens:
        rig.step()


def undisturbed(recipe: Recipe, sampling: SamplingParams) -> list[int]:
    rig = build_rig()
    request = rig.add(build_request("v", 60, recipe, sampling=sampling))
    rig.run()
    return request.token_ids


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("continues", [False, True])
@pytest.mark.parametrize("at", [(0,), (16,), (48,), (60,), (63,), (32, 62)])
def test_a_preempted_request_goes_on_as_if_nothing_had_happened(
    recipe: Recipe, continues: bool, at: tuple[int, ...]
) -> None:
    sampling = SamplingParams(max_tokens=8, temperature=0.8, seed=3)
    rig, clock = one_at_a_time()
    victim = rig.add(build_request("v", 60, recipe, sampling=sampling, continues=continues))
    rig.engine.step() if at == (0,) else None
    for index, num_tokens in enumerate(at):
        step_until_computed(rig, victim, num_tokens)
        urgent = add_urgent(rig, clock, f"u{index}")
        rig.step()
        assert (victim.num_preemptions, urgent.status) == (index + 1, Status.RUNNING)
        assert (victim.num_held_blocks, victim.num_reserved_blocks) == (0, 0)
    rig.run()
    assert victim.token_ids == undisturbed(recipe, sampling)
    assert victim.num_restored_tokens == 0
    assert_equals_oracle(rig, tiny_model(), victim)
    for index in range(len(at)):
        assert_equals_oracle(rig, tiny_model(), rig.requests[f"u{index}"])
    assert rig.engine.swapped.free_bytes == rig.engine.config.max_swapped_bytes


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 90), recipes(3), st.integers(-1, 1), st.booleans()), min_size=2, max_size=5),
    st.lists(st.integers(0, 12), min_size=2, max_size=6),
    st.integers(60, 140),
    st.sampled_from([1, 1 << 20]),
)
def test_whoever_makes_room_whenever_everybody_gets_the_oracles_logits(
    asked: list[tuple[int, Recipe, int, bool]], steps_between: list[int], num_blocks: int, step_bytes: int
) -> None:
    """In a pool that holds only some, with urgent requests coming in between."""
    config = engine_config(
        num_blocks=num_blocks, max_step_tokens=16, max_running=2, max_waiting=50, export_step_bytes=step_bytes
    )
    rig, clock = one_at_a_time(config)
    for index, (length, recipe, priority, continues) in enumerate(asked):
        tokens = random_tokens(length, seed=index)
        rig.add(build_request(f"r{index}", tokens, recipe, priority=priority, continues=continues))
    for index, steps in enumerate(steps_between):
        for _ in range(steps):
            rig.step()
        add_urgent(rig, clock, f"u{index}", priority=1)
    rig.run()
    for request in rig.requests.values():
        assert request.num_preemptions <= MAX_PREEMPTIONS
        assert_equals_oracle(rig, tiny_model(), request)
    assert rig.engine.swapped.free_bytes == config.max_swapped_bytes


def test_a_turn_whose_past_was_restored_keeps_count_of_that() -> None:
    rig, clock = one_at_a_time()
    first = rig.add(build_request("one", 40, RECIPES[1], continues=True))
    rig.run()
    state = rig.state("one")
    rig.engine.drop_parked("one")
    second = rig.add(next_turn("two", first, random_tokens(30)), state)
    step_until_computed(rig, second, state.num_tokens + 16)
    add_urgent(rig, clock, "u")
    rig.run()
    assert second.num_preemptions == 1
    assert second.num_restored_tokens == rig.finished("two").num_restored_tokens == state.num_tokens
    assert_equals_oracle(rig, tiny_model(), second)


def test_a_large_state_moves_in_parts_while_others_get_their_tokens() -> None:
    clock = FakeClock()
    config = engine_config(max_step_tokens=256, max_running=2, export_step_bytes=1)
    rig = build_rig(config=config, clock=clock)
    rig.engine.set_cost(LinearCost())
    chat = rig.add(build_request("chat", 5, sampling=SamplingParams(max_tokens=40), priority=5))
    rig.step()
    victim = rig.add(build_request("v", 5 * SLICE_TOKENS))
    rig.step()
    assert victim.num_computed_tokens > 3 * SLICE_TOKENS
    add_urgent(rig, clock, "u")
    slow_steps = 0
    while victim.status is not Status.RUNNING or victim.compute_limit is not None or not slow_steps:
        before = chat.num_generated_tokens
        rig.step()
        assert chat.num_generated_tokens == before + 1
        slow_steps += 1
    assert slow_steps == 7, "four slices out and in again, one each way a step"
    rig.run()
    assert_equals_oracle(rig, tiny_model(), victim)


def swapped_in_part(stage: str, deadline_s: float | None = None) -> tuple[Rig, FakeClock, Request]:
    """A victim whose state is on its way out, kept in host memory, or on its way back."""
    rig, clock = one_at_a_time(engine_config(max_step_tokens=256, max_running=1, export_step_bytes=1))
    victim = rig.add(build_request("v", 5 * SLICE_TOKENS, deadline_s=deadline_s))
    rig.step()
    add_urgent(rig, clock, "u", max_tokens=12)
    until = {"out": Status.LEAVING, "kept": Status.WAITING, "back": Status.RUNNING}[stage]
    rig.step()
    for _ in range(20):
        if victim.status is not until:
            rig.step()
    assert victim.status is until
    assert "v" in rig.engine.swapped
    return rig, clock, victim


@pytest.mark.parametrize("stage", ["out", "kept", "back"])
@pytest.mark.parametrize("reason", [FinishReason.CANCELLED, FinishReason.DEADLINE])
def test_a_preempted_request_that_ends_leaves_nothing_in_either_memory(stage: str, reason: FinishReason) -> None:
    rig, clock, victim = swapped_in_part(stage, deadline_s=FakeClock().now_s + 100.0)
    if reason is FinishReason.CANCELLED:
        outputs = rig.engine.cancel("v")
    else:
        clock.now_s += 200.0
        outputs = rig.step()
    assert [out.reason for out in outputs if isinstance(out, Finished) and out.request_id == "v"] == [reason]
    rig.engine.check_integrity()
    assert "v" not in rig.engine.swapped
    assert victim.block_tables == []
    rig.run()
    assert rig.engine.manager.pool.num_used_blocks == rig.engine.manager.num_reserved_blocks == 0
    assert rig.engine.swapped.free_bytes == rig.engine.config.max_swapped_bytes


def test_a_preempted_request_with_a_slow_reader_leaves_and_then_rests() -> None:
    rig, _, victim = swapped_in_part("out")
    rig.engine.set_paused("v", True)
    rig.run()
    assert (victim.status, rig.engine.has_work) == (Status.WAITING, False)
    rig.engine.set_paused("v", False)
    rig.run()
    assert_equals_oracle(rig, tiny_model(), victim)


@pytest.mark.parametrize("options", [{"max_swapped_bytes": 0}, {"policy": "fcfs"}])
def test_nobody_makes_room_without_host_memory_or_under_fcfs(options: dict[str, int]) -> None:
    rig, clock = one_at_a_time(engine_config(max_step_tokens=16, max_running=1, **options))  # type: ignore[arg-type]
    victim = rig.add(build_request("v", 60))
    step_until_computed(rig, victim, 16)
    add_urgent(rig, clock, "u")
    rig.run()
    assert victim.num_preemptions == 0


def test_a_parked_state_goes_before_anybody_is_preempted() -> None:
    rig, clock = one_at_a_time(engine_config(num_blocks=1 + 3 * 11, max_step_tokens=16))
    rig.add(build_request("parked", 20, continues=True))
    rig.run()
    running = rig.add(build_request("v", 60))
    step_until_computed(rig, running, 16)
    assert "parked" in rig.engine.parked
    urgent = add_urgent(rig, clock, "u")
    rig.step()
    assert urgent.status is Status.RUNNING
    assert running.num_preemptions == 0
    assert "parked" not in rig.engine.parked
    rig.run()


def test_a_request_whose_checkpoint_is_on_its_way_is_left_alone_until_it_is_out() -> None:
    config = engine_config(max_step_tokens=128, max_running=1, export_step_bytes=1)
    rig, clock = one_at_a_time(config)
    victim = rig.add(build_request("v", 5 * SLICE_TOKENS, continues=True, checkpoint_tokens=128))
    rig.step()
    add_urgent(rig, clock, "u")
    rig.step()
    assert victim.num_preemptions == 0
    rig.run()
    assert victim.num_preemptions == 1
    assert rig.checkpoints("v")
    assert_equals_oracle(rig, tiny_model(), victim)
