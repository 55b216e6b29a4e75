"""The fit finds the prices that made the times, and never a negative one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cost import (
    DECODE_PRICES,
    PROMPT_PRICES,
    CostProfile,
    StepWork,
    chunk_work,
    count_layers,
    step_work,
)
from services.replica.fit import PAIR_RATIO, fit, fit_prices
from swaa_runtime.recipe import Recipe
from swaa_runtime.visibility import Turn

RECIPES = (
    Recipe(),
    Recipe(window=64, sink_tokens=4, full_decode=True, full_tail=32),
    Recipe(window=256, sink_tokens=4),
)
NAMES = PROMPT_PRICES | DECODE_PRICES


def profile_of(prices: dict[str, Any]) -> CostProfile:
    return CostProfile("m", "h", "t", 1024, restore_ms_per_mib=0.0, **prices)


def steps() -> list[StepWork]:
    """Steps such as calibration runs: prompts alone, answers alone and side by side, and both."""
    work = []
    for recipe in RECIPES:
        layers = count_layers(recipe.resolve(8))
        for length in (64, 500, 1500, 4000):
            turns = (Turn(0, length),)
            chunks = [chunk_work(layers, turns, start, min(1024, length - start)) for start in range(0, length, 1024)]
            answers = [chunk_work(layers, turns, length + index, 1) for index in range(3)]
            work += [step_work([chunk]) for chunk in (*chunks, *answers)]
            work += [step_work(answers), step_work([chunks[0], *answers])]
    return work


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {name: st.floats(0.1, 100) if name.endswith("_ms") else st.floats(1, 1000) for name in NAMES.values()}
    ),
    st.sampled_from([None, *(name for name in NAMES.values() if "pair" not in name)]),
    st.floats(1.1 / PAIR_RATIO, PAIR_RATIO / 1.1),
)
def test_the_fit_finds_the_prices_that_made_the_times(
    truth: dict[str, float], absent: str | None, pair_ratio: float
) -> None:
    truth["window_pair_ns"] = truth["pair_ns"] * pair_ratio
    if absent is not None:
        truth[absent] = 0.0
    profile = profile_of(truth)
    work = steps()
    times_ms = [profile.step_ms(step) for step in work]
    found = profile_of(fit_prices(work, times_ms, NAMES))
    assert [found.step_ms(step) for step in work] == pytest.approx(times_ms, rel=1e-3)


@pytest.mark.parametrize("pair_ratio", [0.0, 0.1, 30.0])
def test_two_prices_of_a_pair_that_cannot_be_are_made_one(pair_ratio: float) -> None:
    truth = dict.fromkeys(NAMES.values(), 1.0) | {"pair_ns": 20.0, "window_pair_ns": 20.0 * pair_ratio}
    profile, work = profile_of(truth), steps()
    prices = fit_prices(work, [profile.step_ms(step) for step in work], NAMES)
    assert prices["window_pair_ns"] == prices["pair_ns"] > 0.0


def test_what_was_never_seen_costs_nothing() -> None:
    prices = fit_prices([StepWork(prompt_steps=1, prompt_tokens=n) for n in (1, 2, 5)], [3.0, 4.0, 7.0], NAMES)
    assert prices["prompt_step_ms"] == pytest.approx(2.0)
    assert prices["token_ms"] == pytest.approx(1.0)
    assert sum(prices.values()) == pytest.approx(3.0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0, 10), st.floats(0, 10), st.floats(1, 100)), min_size=3))
def test_no_price_is_negative_and_no_single_one_could_be_better(samples: list[tuple[float, ...]]) -> None:
    rows, times_ms = [sample[:3] for sample in samples], [sample[3] for sample in samples]
    found = fit(rows, times_ms)
    assert all(price >= 0.0 for price in found)

    def error(prices: list[float]) -> float:
        return sum(
            (sum(p * x for p, x in zip(prices, row, strict=True)) / ms - 1) ** 2
            for row, ms in zip(rows, times_ms, strict=True)
        )

    for index in range(3):
        for change in (-0.01, 0.01):
            other = [max(0.0, p + change * (at == index)) for at, p in enumerate(found)]
            assert error(found) <= error(other) + 1e-6
