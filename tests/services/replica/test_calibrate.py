"""Calibration measures what this machine can hold, and leaves nothing behind."""

from __future__ import annotations

import math

import pytest

from services.cost import CostProfile, StepWork, prefill_work
from services.replica.calibrate import (
    DECODE_TOKENS,
    MIB,
    QUICK,
    RECIPES,
    THOROUGH,
    Effort,
    _crowd,
    _longest_s,
    calibrate,
    describe_hardware,
    quantile,
)
from services.replica.online_cost import OnlineCost
from swaa_runtime.errors import OutOfCapacity
from swaa_runtime.recipe import Recipe
from swaa_runtime.step_cost import UnknownCost
from swaa_runtime.visibility import Turn
from tests.services.sessions.fake_store import FakeSessionStore
from tests.swaa_runtime.builders import engine_config, tiny_model

from .builders import asynchronous, running_engine

PROMPT = prefill_work(Recipe().resolve(3), (Turn(0, 300),), 0, 300)


async def measure(effort: Effort, max_tokens: int, num_blocks: int = 2000) -> tuple[CostProfile, list[tuple[int, int]]]:
    store, seen = FakeSessionStore(), []
    async with running_engine(engine_config(num_blocks=num_blocks)) as rig:
        profile = await calibrate(
            tiny_model(), rig.loop, store, "raw", 32, max_tokens, effort, lambda done, total: seen.append((done, total))
        )
        assert await rig.used_blocks() == 0
    assert not store.manifests
    return profile, seen


@asynchronous
async def test_a_profile_of_this_machine() -> None:
    profile, seen = await measure(Effort((50, 100, 200), 1, budget_s=60.0), 2048)
    assert seen == [(done, 14) for done in range(1, 15)], "three recipes by three lengths, two mixes, two batches"
    assert profile.model_fingerprint == tiny_model().fingerprint
    assert profile.hardware == describe_hardware(tiny_model().model.device)
    assert profile.max_step_tokens == 32
    prices = [value for value in profile.to_mapping().values() if isinstance(value, float)]
    assert len(prices) == 12
    assert profile.error_median is None
    assert profile.error_p95 is None
    assert all(0.0 <= price < math.inf for price in prices)
    assert profile.prefill_ms(PROMPT) > 0.0
    assert profile.tpot_ms(100) > 0.0
    assert 0.0 < profile.restore_ms_per_mib < 10_000
    assert CostProfile.from_mapping(profile.to_mapping()) == profile


@pytest.mark.parametrize(
    ("num_tokens", "max_step_tokens", "near"),
    [(100, 1024, 100), (2000, 1024, 2068), (8000, 1024, 8212), (2000, 8192, 2000), (8000, 8192, 8212)],
)
def test_a_prompt_of_several_steps_ends_with_a_short_one(num_tokens: int, max_step_tokens: int, near: int) -> None:
    assert QUICK.near(num_tokens, max_step_tokens) == near
    assert THOROUGH.near(num_tokens, max_step_tokens) == num_tokens


def test_keys_are_priced_where_a_short_step_looked_back() -> None:
    whole, rest = StepWork(prompt_steps=1, prompt_tokens=1024), StepWork(prompt_steps=1, prompt_tokens=20)
    assert "keys" in QUICK.priced([whole, rest])
    assert set(QUICK.prices) - set(QUICK.priced([whole])) == {"keys"}
    assert "keys" in THOROUGH.priced([whole])


@pytest.mark.parametrize(("max_tokens", "num_steps"), [(75, 3), (74, 2)])
@asynchronous
async def test_a_length_that_fits_is_run_if_the_one_near_it_does_not(max_tokens: int, num_steps: int) -> None:
    """50 tokens in steps of 32: 32 and 18; near them, 32, 32 and 3."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    async with running_engine(engine_config()) as rig:
        rig.runner.before_step = count
        effort = Effort((50,), 1, budget_s=0.0, rest_tokens=3)
        await calibrate(tiny_model(), rig.loop, FakeSessionStore(), "raw", 32, max_tokens, effort)
    assert steps == (1 + len(RECIPES)) * (num_steps + DECODE_TOKENS - 1), "the first one is run twice"


@asynchronous
async def test_crowds_are_run_once_beside_all_that_is_run_often() -> None:
    effort = Effort((50, 100), 2, 60.0, crowd_tokens=(150, 2048))
    _, seen = await measure(effort, 2048)
    assert seen[-1] == (18, 18), "twice three recipes by two lengths and two batches; a crowd that fits; restoring"


def test_a_crowd_is_of_all_recipes_and_of_lengths_that_end_in_turn() -> None:
    crowd = _crowd(1200)
    assert [prompt.num_tokens for prompt in crowd] == [700, 800, 900, 1000, 1100, 1200]
    assert {prompt.recipe for prompt in crowd} == set(RECIPES)


@asynchronous
async def test_prompts_that_do_not_fit_are_left_out() -> None:
    _, seen = await measure(Effort((50, 100, 5000), 1, budget_s=60.0), max_tokens=300, num_blocks=200)
    assert seen[-1] == (9, 9), "three recipes by two lengths, two batches, and restoring"


@asynchronous
async def test_a_profile_says_how_wrong_it_is_on_other_prompts() -> None:
    profile, seen = await measure(Effort((50, 400), 2, 60.0, held_out_tokens=(120, 900)), 2048)
    assert seen[-1] == (21, 21), "twice three recipes by two lengths and two batches; four others by one; restoring"
    assert profile.error_median is not None
    assert profile.error_p95 is not None
    assert 0.0 <= profile.error_median <= profile.error_p95


@asynchronous
async def test_when_time_is_up_only_single_prompts_are_run() -> None:
    async with running_engine() as rig:
        most = 0

        def before_step() -> None:
            nonlocal most
            most = max(most, len(rig.engine.scheduler.running))

        rig.runner.before_step = before_step
        effort = Effort((50, 100, 200), 2, budget_s=0.0)
        profile = await calibrate(tiny_model(), rig.loop, FakeSessionStore(), "raw", 32, 2048, effort)
    assert most == 1
    assert profile.prefill_ms(PROMPT) > 0.0


def test_a_run_is_taken_for_as_long_as_shorter_ones_would_make_it_at_most() -> None:
    took_s = {100: 9.0, 1000: 2.0, 2000: 3.0}
    assert _longest_s(took_s, 2000) == pytest.approx(8.0)  # four times that of half the tokens
    assert _longest_s(took_s, 4000) == pytest.approx(12.0)
    assert _longest_s(took_s, 5000) == pytest.approx(18.75), "nothing is nearer"
    assert _longest_s(took_s, 90) == 0.0


@asynchronous
async def test_after_calibration_the_engine_has_no_recorder_left() -> None:
    async with running_engine() as rig:
        rig.engine.set_cost(OnlineCost(CostProfile("m", "h", "t", 32, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)))
        await calibrate(tiny_model(), rig.loop, FakeSessionStore(), "raw", 32, 2048, Effort((50,), 1, 60.0))
        assert type(rig.engine._cost) is UnknownCost


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 1.0), (0.5, 2.0), (0.75, 3.0), (0.76, 4.0), (0.95, 4.0), (1.0, 4.0)]
)
def test_a_quantile_is_one_of_the_values(share: float, value: float) -> None:
    assert quantile([3.0, 1.0, 4.0, 2.0], share) == value


@asynchronous
async def test_too_little_memory_to_measure_anything_is_said() -> None:
    with pytest.raises(OutOfCapacity, match="there is room for 40 tokens, measuring costs needs at least 58"):
        await measure(Effort((50, 100), 1, 60.0), max_tokens=40)


def test_sizes_are_binary() -> None:
    assert MIB == 1024 * 1024
