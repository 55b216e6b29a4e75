"""The cost model counts what the visibility rule says, whatever the chunks, and prices are kept as they were taken."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cost import (
    CostProfile,
    StepWork,
    chunk_work,
    count_layers,
    decode_keys,
    kv_tokens,
    prefill_work,
    step_work,
)
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


@settings(deadline=None)
@given(st.lists(rules, min_size=1, max_size=4), sessions(), st.integers(1, 9))
def test_a_prefill_is_the_sum_of_its_steps(
    layer_rules: list[LayerRule], session: tuple[tuple[Turn, ...], int, int], max_step_tokens: int
) -> None:
    turns, start, stop = session
    layers = count_layers(layer_rules)
    steps = [
        step_work([chunk_work(layers, turns, at, min(max_step_tokens, stop - at))])
        for at in range(start, stop, max_step_tokens)
    ]
    assert sum(steps, StepWork()) == prefill_work(layer_rules, turns, start, stop).in_steps(max_step_tokens)


def test_a_chunk_collects_what_it_attends_to_once() -> None:
    layers = {LayerRule(): 2, LayerRule(window=10, sink_tokens=3): 5}
    work = chunk_work(layers, (Turn(0, 100),), 40, 20)
    assert work.keys == 2 * 60 + 5 * (3 + 9 + 20)
    assert work.calls == 2 + 5
    assert (work.prompt_tokens, work.window_queries) == (20, 5 * 20)


def test_a_step_counts_prompts_and_answers_apart() -> None:
    layers, turns = {LayerRule(): 3}, (Turn(0, 10),)
    prompt, answer = chunk_work(layers, turns, 4, 6), chunk_work(layers, turns, 12, 1)
    assert answer == StepWork(decode_rows=1, decode_keys=3 * 13)
    assert step_work([prompt, answer, answer]) == prompt + answer + answer + StepWork(prompt_steps=1, mixed_rows=2)
    assert step_work([answer, answer]) == answer + answer + StepWork(decode_steps=1)


def test_what_a_chunk_takes_besides_is_what_cutting_a_prompt_costs() -> None:
    """Of windows it is exact but for a token's own price; of full attention it is what a chunk in the middle takes."""
    cost = replace(COST, token_ms=0.0, pair_ns=0.0, window_pair_ns=0.0, key_ns=5e3, call_ns=7e5)
    turns, start, stop = (Turn(0, 9000),), 2000, 8000

    def ms(layers: dict[LayerRule, int], num_chunks: int) -> float:
        size = (stop - start) // num_chunks
        return sum(cost.prompt_ms(chunk_work(layers, turns, at, size)) for at in range(start, stop, size))

    for layers in ({LayerRule(): 2}, {LayerRule(window=10, sink_tokens=3): 5}):
        chunk_ms = cost.chunk_ms(layers, turns, start, stop)
        assert (ms(layers, 60) - ms(layers, 10)) / 50 == pytest.approx(chunk_ms, rel=0.01)


def test_a_last_prompt_token_alone_in_its_step_is_no_answer() -> None:
    assert chunk_work({LayerRule(): 1}, (Turn(0, 10),), 9, 1).decode_rows == 0


def test_predictions_are_the_sum_of_their_parts() -> None:
    turns, rule = (Turn(0, 1500),), LayerRule()
    pairs = 1500 * 1501 // 2
    assert COST.prefill_ms(prefill_work([rule], turns, 0, 1500)) == pytest.approx(2 * 10 + 1500 * 0.1 + pairs * 1e-3)
    assert COST.tpot_ms(2 * 10**6) == pytest.approx(5 + 2000)
    every = replace(COST, window_query_ns=3.0, key_ns=5.0, call_ns=7.0, decode_row_ms=11.0, mixed_row_ms=13.0)
    counts = StepWork(1, 2, 3e6, 4e6, 5e6, 6e6, 7e6, 8, 9, 10e6, 12)
    prompt = 1 * 10 + 2 * 0.1 + 3 * 1000 + 4 * 100 + 5 * 3 + 6 * 5 + 7 * 7
    decode = 8 * 5 + 9 * 11 + 10 * 1000 + 12 * 13
    assert every.prompt_ms(counts) == pytest.approx(prompt)
    assert every.decode_ms(counts) == pytest.approx(decode)
    assert every.step_ms(counts) == pytest.approx(prompt + decode)


def test_a_correction_scales_prompts_and_answers_apart() -> None:
    counts = StepWork(1, 2, 3e6, 4e6, 5e6, 6e6, 7e6, 8, 9, 10e6)
    corrected = COST.corrected(5.0, 2.0, 3.0)
    besides_ms, growing_ms = COST.prompt_parts_ms(counts)
    assert besides_ms == COST.prompt_step_ms
    assert besides_ms + growing_ms == pytest.approx(COST.prompt_ms(counts))
    assert corrected.prompt_parts_ms(counts) == pytest.approx((5 * besides_ms, 2 * growing_ms))
    assert corrected.decode_ms(counts) == pytest.approx(3 * COST.decode_ms(counts))
    assert corrected.restore_ms_per_mib == COST.restore_ms_per_mib


def test_a_profile_survives_json() -> None:
    assert CostProfile.from_mapping(json.loads(json.dumps(COST.to_mapping()))) == COST


@pytest.mark.parametrize("version", [None, 0, 2, 4, "3"])
def test_a_profile_of_another_version_is_refused(version: object) -> None:
    with pytest.raises(InvalidRequest, match=r"profile version is .*: must be 3; calibrate again"):
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


@pytest.mark.parametrize("value", ["small", -0.1, float("nan")])
def test_an_error_that_is_none_is_no_error_but_no_number_is(value: object) -> None:
    assert CostProfile.from_mapping(COST.to_mapping()).error_p95 is None
    assert CostProfile.from_mapping({**COST.to_mapping(), "error_p95": 0.25}).error_p95 == 0.25
    with pytest.raises(InvalidRequest, match="error_p95"):
        CostProfile.from_mapping({**COST.to_mapping(), "error_p95": value})


@pytest.mark.parametrize("mapping", [[], None, "x", 3])
def test_json_that_is_no_profile_is_refused(mapping: Any) -> None:
    with pytest.raises(InvalidRequest, match="profile"):
        CostProfile.from_mapping(mapping)


def test_a_profile_is_a_value() -> None:
    assert replace(COST) == COST != replace(COST, token_ms=11.0)
