"""The cost model counts what the visibility rule says, and the fit finds what made the times."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cost import CostProfile, PrefillWork, decode_keys, fit, kv_tokens, prefill_work
from swaa_runtime.errors import InvalidRequest
from swaa_runtime.kv_cache.slices import needed_slices
from swaa_runtime.recipe import LayerRule
from swaa_runtime.visibility import Turn, visible

from .gateway.builders import COST

rules = st.one_of(
    st.just(LayerRule()),
    st.builds(
        LayerRule,
        window=st.integers(1, 12),
        sink_tokens=st.integers(0, 5),
        full_decode=st.booleans(),
        full_tail=st.integers(0, 6),
    ),
)


@st.composite
def sessions(draw: st.DrawFn) -> tuple[tuple[Turn, ...], int, int]:
    """Turns of a session whose last one is at its prompt, and a range of its tokens up to the end."""
    turns, start = [], 0
    for prompt, generated in draw(st.lists(st.tuples(st.integers(1, 15), st.integers(1, 5)), max_size=3)):
        turns.append(Turn(start, start + prompt, start + prompt + generated))
        start += prompt + generated
    stop = start + draw(st.integers(1, 20))
    return (*turns, Turn(start, stop)), draw(st.integers(0, stop)), stop


@settings(deadline=None)
@given(st.lists(rules, min_size=1, max_size=4), sessions())
def test_prefill_work_counts_the_visible_pairs(
    layer_rules: list[LayerRule], session: tuple[tuple[Turn, ...], int, int]
) -> None:
    turns, start, stop = session
    pairs = sum(
        visible(rule, turns, query, key)
        for rule in layer_rules
        for query in range(start, stop)
        for key in range(query + 1)
    )
    work = prefill_work(layer_rules, turns, start, stop)
    assert work.num_tokens == stop - start
    assert work.pairs_all + work.pairs_window == pairs
    if all(rule.window is None for rule in layer_rules):
        assert work.pairs_window == 0


def test_pairs_that_slide_have_a_price_of_their_own() -> None:
    rule = LayerRule(window=10, sink_tokens=2, full_tail=5)
    work = prefill_work([rule] * 3, (Turn(0, 100),), 0, 100)
    assert work.pairs_window == 3 * (100 - 5 - 12) * 12
    assert work.pairs_all == 3 * (sum(range(1, 13)) + sum(range(96, 101)))


@settings(deadline=None)
@given(st.lists(rules, min_size=1, max_size=4), st.integers(1, 40))
def test_decode_keys_counts_what_a_generated_token_sees(layer_rules: list[LayerRule], position: int) -> None:
    turns = (Turn(0, position),)
    keys = sum(visible(rule, turns, position, key) for rule in layer_rules for key in range(position + 1))
    assert decode_keys(layer_rules, position) == keys


@settings(deadline=None)
@given(st.lists(rules, min_size=1, max_size=4), st.integers(1, 40), st.booleans())
def test_kv_tokens_counts_what_a_later_token_sees(layer_rules: list[LayerRule], stop: int, continues: bool) -> None:
    # The tokens to come: an answer; in a session another prompt as well, long enough to slide and to have a tail.
    answer = Turn(0, stop, stop + 1)
    turns = (answer, Turn(stop + 1, stop + 41)) if continues else (Turn(0, stop),)
    later = range(stop, stop + 41) if continues else range(stop, stop + 3)
    needed = sum(
        any(visible(rule, turns, query, key) for query in later) for rule in layer_rules for key in range(stop)
    )
    assert kv_tokens(layer_rules, stop, continues) == needed
    if continues:
        saved = needed_slices(layer_rules, stop, bytes_per_token_layer=64)
        assert kv_tokens(layer_rules, stop, True) == sum(len(key.layers) * (key.stop - key.start) for key in saved)


def test_steps_are_counted_whole() -> None:
    assert PrefillWork(2001, 5, 7).features(1000) == (3.0, 2001.0, 5.0, 7.0)
    assert PrefillWork(2000, 5, 7).features(1000)[0] == 2.0


def test_predictions_are_the_sum_of_their_parts() -> None:
    assert COST.prefill_ms(PrefillWork(1500, 10**6, 10**7)) == pytest.approx(2 * 10 + 1500 * 0.1 + 1000 + 1000)
    assert COST.tpot_ms(2 * 10**6) == pytest.approx(5 + 2000)


@settings(deadline=None)
@given(
    st.tuples(st.floats(1, 100), st.floats(0.01, 10), st.floats(1e-6, 1e-3), st.floats(1e-7, 1e-4)),
    st.sampled_from([None, 0, 1, 2, 3]),
)
def test_the_fit_finds_the_coefficients_that_made_the_times(coefficients: Any, absent: int | None) -> None:
    truth = [0.0 if index == absent else value for index, value in enumerate(coefficients)]
    rows, times = [], []
    for rule in (LayerRule(), LayerRule(64, 4, True, 32), LayerRule(256, 4)):
        for length in (100, 500, 1500, 3000, 5000):
            row = prefill_work([rule] * 8, (Turn(0, length),), 0, length).features(1024)
            rows.append(row)
            times.append(sum(c * x for c, x in zip(truth, row, strict=True)))
    assert fit(rows, times) == pytest.approx(truth, rel=1e-4, abs=max(truth) * 1e-9)


def test_the_fit_never_gives_a_negative_price() -> None:
    rows = [(1.0, 10.0, 100.0), (1.0, 20.0, 400.0), (1.0, 30.0, 900.0), (1.0, 40.0, 1600.0)]
    found = fit(rows, [10.0, 19.0, 27.0, 34.0])  # bends down: the exact fit would have a negative square
    assert all(value >= 0.0 for value in found)
    assert found[1] > 0.0
    assert [sum(c * x for c, x in zip(found, row, strict=True)) for row in rows] == pytest.approx(
        [10.0, 19.0, 27.0, 34.0], rel=0.1
    )


def test_a_profile_survives_json() -> None:
    assert CostProfile.from_mapping(json.loads(json.dumps(COST.to_mapping()))) == COST


@pytest.mark.parametrize("version", [None, 0, 2, "1"])
def test_a_profile_of_another_version_is_refused(version: object) -> None:
    with pytest.raises(InvalidRequest, match=r"profile version is .*: must be 1; calibrate again"):
        CostProfile.from_mapping({**COST.to_mapping(), "version": version})


def test_a_profile_with_a_field_too_few_or_too_many_is_refused() -> None:
    mapping = COST.to_mapping()
    del mapping["token_ms"]
    with pytest.raises(InvalidRequest, match=r"token_ms.*missing or unknown fields"):
        CostProfile.from_mapping(mapping)
    with pytest.raises(InvalidRequest, match=r"warp_ms.*missing or unknown fields"):
        CostProfile.from_mapping({**COST.to_mapping(), "warp_ms": 1.0})


@pytest.mark.parametrize("value", ["fast", None, -1.0, float("nan"), float("inf"), True, [1.0]])
def test_a_profile_with_a_coefficient_that_is_no_price_is_refused(value: object) -> None:
    with pytest.raises(InvalidRequest, match="token_ms"):
        CostProfile.from_mapping({**COST.to_mapping(), "token_ms": value})


@pytest.mark.parametrize("mapping", [[], None, "x", 3])
def test_json_that_is_no_profile_is_refused(mapping: Any) -> None:
    with pytest.raises(InvalidRequest, match="profile"):
        CostProfile.from_mapping(mapping)


def test_a_profile_is_a_value() -> None:
    assert replace(COST) == COST != replace(COST, step_ms=11.0)
