"""Load, mix or recompute: held to trying every cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cost import CostProfile, prefill_work
from services.restore_plan import MIX_GAIN, SavedState, plan_restore, segments_past
from services.sessions.store import SegmentRef
from swaa_runtime.kv_cache.slices import SLICE_TOKENS, needed_slices
from swaa_runtime.recipe import LayerRule, Recipe
from swaa_runtime.visibility import Turn

NUM_LAYERS, BYTES = 4, 1000

COST = CostProfile(
    model_fingerprint="m",
    hardware="test",
    measured_at="2026-01-01T00:00:00+00:00",
    max_step_tokens=1000,
    prompt_step_ms=1.0,
    token_ms=0.1,
    pair_ns=100.0,
    window_pair_ns=100.0,
    decode_step_ms=5.0,
    decode_key_ns=1000.0,
    restore_ms_per_mib=2.0,
)

RECIPES = {
    "full": Recipe(),
    "tail": Recipe(window=64, sink_tokens=4, full_decode=True, full_tail=16),
    "interleaved": Recipe(window=300, sink_tokens=4, full_layers="1::2"),
    "sliding": Recipe(window=64, sink_tokens=4),
}


def rules_of(name: str) -> tuple[LayerRule, ...]:
    return RECIPES[name].resolve(NUM_LAYERS)


def state_of(name: str, num_tokens: int) -> SavedState:
    keys = needed_slices(rules_of(name), num_tokens, BYTES)
    refs = [SegmentRef(key, "0" * 32, BYTES * len(key.layers) * (key.stop - key.start)) for key in keys]
    return SavedState("session", num_tokens, tuple(refs), "raw")


def turns_of(num_tokens: int) -> tuple[Turn, ...]:
    return (Turn(0, num_tokens - 9, num_tokens + 1), Turn(num_tokens + 1, num_tokens + 21))


@pytest.mark.parametrize("name", RECIPES)
@given(num_tokens=st.integers(10, 3000), price=st.floats(0.0, 500.0))
def test_no_cut_is_better_by_more_than_a_mix_must_gain(name: str, num_tokens: int, price: float) -> None:
    cost, rules, turns = replace(COST, restore_ms_per_mib=price), rules_of(name), turns_of(num_tokens)
    state, stop = state_of(name, num_tokens), num_tokens + 21
    plan = plan_restore(rules, turns, stop, state, cost)

    def compute(low: int, high: int) -> float:
        return cost.prefill_ms(prefill_work(rules, turns, low, high)) if low < high else 0.0

    def load(cut: int) -> float:
        return sum(ref.num_bytes for ref in segments_past(state.segments, cut, rules)) / (1 << 20) * price

    rest = compute(num_tokens, stop)
    ways = {cut: max(compute(0, cut), load(cut)) + rest for cut in range(0, num_tokens, SLICE_TOKENS)}
    best = min(*ways.values(), compute(0, stop))
    assert plan.predicted_ms * MIX_GAIN <= best + 1e-6
    if plan.kind == "recompute":
        assert plan.predicted_ms == compute(0, stop) <= ways[0]
        assert (plan.source, plan.num_restored_tokens) == (None, 0)
    else:
        assert plan.predicted_ms == pytest.approx(ways[plan.compute_stop])
        assert plan.source == "session"
        assert plan.num_restored_tokens == num_tokens - plan.compute_stop
        assert (plan.compute_stop > 0) == (plan.kind == "mix")


def plan_at(price: float, name: str = "full", num_tokens: int = 2000) -> str:
    cost = replace(COST, restore_ms_per_mib=price)
    state = state_of(name, num_tokens)
    return plan_restore(rules_of(name), turns_of(num_tokens), num_tokens + 21, state, cost).kind


def test_the_price_of_a_byte_decides() -> None:
    assert [plan_at(price) for price in (0.1, 100.0, 10_000.0)] == ["load", "mix", "recompute"]


def test_what_is_all_window_is_never_mixed() -> None:
    assert {plan_at(price, "sliding") for price in (0.1, 10.0, 100.0, 1000.0, 10_000.0)} == {"load", "recompute"}


def test_the_reason_has_the_figures() -> None:
    reason = plan_restore(rules_of("full"), turns_of(2000), 2021, state_of("full", 2000), COST).reason
    assert reason.startswith("loading takes 15 ms, recomputing ")


def test_nothing_saved() -> None:
    plan = plan_restore(rules_of("full"), turns_of(2000), 2021, None, COST)
    assert (plan.kind, plan.source, plan.num_restored_tokens) == ("none", None, 0)


def test_what_is_hot_costs_nothing_and_keeps_what_it_could_be_fetched_from() -> None:
    state = state_of("full", 2000)
    plan = plan_restore(rules_of("full"), turns_of(2000), 2021, state, replace(COST, restore_ms_per_mib=1e9), True)
    assert (plan.kind, plan.source, plan.num_restored_tokens) == ("hot", "session", 2000)
    assert plan.predicted_ms == COST.prefill_ms(prefill_work(rules_of("full"), turns_of(2000), 2000, 2021))


@pytest.mark.parametrize("name", RECIPES)
def test_segments_past_a_token_are_all_of_windows_and_those_that_reach_past_it(name: str) -> None:
    rules = rules_of(name)
    state = state_of(name, 1000)
    past = segments_past(state.segments, 512, rules)
    for ref in state.segments:
        windowed = rules[ref.key.layers[0]].window is not None and not rules[ref.key.layers[0]].looks_back
        assert (ref in past) == (windowed or ref.key.stop > 512)
