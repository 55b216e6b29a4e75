from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swaa_runtime.kv_cache.slices import SLICE_TARGET_BYTES, SLICE_TOKENS, SliceKey, needed_slices, state_bytes
from swaa_runtime.recipe import LayerRule
from swaa_runtime.visibility import Turn, visible
from tests.swaa_runtime.strategies import layer_rules

LENGTHS = st.one_of(st.integers(1, 60), st.sampled_from([63, 64, 65, 127, 128, 129, 700]))
SOME_BYTES = 1536


def covered(keys: list[SliceKey], layer: int) -> list[int]:
    return [token for key in keys if layer in key.layers for token in range(key.start, key.stop)]


def seen_by_a_next_turn(rule: LayerRule, num_tokens: int) -> set[int]:
    """Keys seen by what follows: the generated token not computed yet, and a next turn's prompt and decode."""
    timelines = [
        (Turn(0, 1, num_tokens + 1), Turn(num_tokens + 1, num_tokens + 1 + length, num_tokens + length + 40))
        for length in (1, 35)
    ]
    return {
        key
        for key in range(num_tokens)
        for timeline in timelines
        if any(visible(rule, timeline, query, key) for query in range(num_tokens, num_tokens + 38))
    }


@given(st.lists(layer_rules(), min_size=1, max_size=4), st.integers(1, 60), st.sampled_from([8, SOME_BYTES, 1 << 20]))
def test_exactly_what_a_later_query_can_see_is_kept_and_nothing_twice(
    rules: list[LayerRule], num_tokens: int, bytes_per_token_layer: int
) -> None:
    keys = needed_slices(rules, num_tokens, bytes_per_token_layer)
    for layer, rule in enumerate(rules):
        tokens = covered(keys, layer)
        assert len(tokens) == len(set(tokens))
        assert set(tokens) == seen_by_a_next_turn(rule, num_tokens)
    assert all(key.start < key.stop for key in keys)


@given(st.lists(layer_rules(), min_size=1, max_size=4), LENGTHS, st.integers(1, 600))
def test_a_later_turn_leaves_full_slices_as_they_are(rules: list[LayerRule], num_tokens: int, more: int) -> None:
    keeps_all = {layer for layer, rule in enumerate(rules) if rule.window is None or rule.looks_back}
    before = needed_slices(rules, num_tokens, SOME_BYTES)
    after = set(needed_slices(rules, num_tokens + more, SOME_BYTES))
    full = [key for key in before if set(key.layers) <= keeps_all and key.stop % SLICE_TOKENS == 0]
    assert set(full) <= after
    for layer in keeps_all:
        aligned = sum(key.stop - key.start for key in full if layer in key.layers)
        assert aligned == num_tokens // SLICE_TOKENS * SLICE_TOKENS, "only the last slice may be short"


def test_slices_stay_near_their_target_size() -> None:
    keys = needed_slices([LayerRule()] * 30, 1000, SOME_BYTES)
    sizes = [len(key.layers) * (key.stop - key.start) * SOME_BYTES for key in keys]
    assert max(sizes) <= SLICE_TARGET_BYTES
    assert max(sizes) > SLICE_TARGET_BYTES // 2


def test_layers_larger_than_the_target_still_get_a_slice_each() -> None:
    keys = needed_slices([LayerRule()] * 2, 10, 1 << 30)
    assert [key.layers for key in keys] == [(0,), (1,)]


@given(st.lists(layer_rules(), min_size=1, max_size=4), LENGTHS)
def test_the_size_of_a_state_is_that_of_its_slices(rules: list[LayerRule], num_tokens: int) -> None:
    keys = needed_slices(rules, num_tokens, 8)
    assert state_bytes(rules, num_tokens, 8) == sum(8 * len(key.layers) * (key.stop - key.start) for key in keys)
