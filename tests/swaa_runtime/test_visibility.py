from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa_runtime.attention.oracle import visibility_mask
from swaa_runtime.recipe import LayerRule
from swaa_runtime.visibility import (
    Turn,
    adapter_start,
    attended_keys,
    first_needed,
    keeps_everything,
    layers_needed,
    looks_back,
    query_runs,
    turn_of,
    visible,
)
from tests.swaa_runtime.strategies import layer_rules, turn_lists

SPANS = st.tuples(st.integers(0, 70), st.integers(1, 70)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def seen(rule: LayerRule, turns: tuple[Turn, ...], query: int) -> set[int]:
    """All keys that a query sees, asked one by one, past its own position too."""
    return {key for key in range(query + 50) if visible(rule, turns, query, key)}


# The definition, by hand.


@pytest.mark.parametrize("window", [1, 2, 7])
def test_a_window_of_w_sees_exactly_w_keys(window: int) -> None:
    turns = (Turn(0, 100),)
    assert seen(LayerRule(window), turns, 50) == set(range(50 - window + 1, 51))


def test_a_window_longer_than_the_past_sees_the_past() -> None:
    assert seen(LayerRule(7), (Turn(0, 100),), 3) == {0, 1, 2, 3}


def test_sinks_are_seen_besides_the_window_and_never_from_the_future() -> None:
    rule, turns = LayerRule(2, sink_tokens=3), (Turn(0, 100),)
    assert seen(rule, turns, 50) == {0, 1, 2, 49, 50}
    assert seen(rule, turns, 1) == {0, 1}


def test_full_attention_sees_all_of_the_past_and_nothing_else() -> None:
    assert seen(LayerRule(), (Turn(0, 9),), 12) == set(range(13))


def test_generated_tokens_see_everything_under_full_decode_and_prompt_tokens_do_not() -> None:
    rule, turns = LayerRule(2, full_decode=True), (Turn(0, 10, 14), Turn(14, 20))
    lengths = {query: len(seen(rule, turns, query)) for query in (9, 10, 13, 14, 19, 20)}
    assert lengths == {9: 2, 10: 11, 13: 14, 14: 2, 19: 2, 20: 21}


def test_the_last_tail_tokens_of_each_prompt_see_everything_and_generated_tokens_do_not() -> None:
    rule, turns = LayerRule(2, full_tail=3), (Turn(0, 10, 14), Turn(14, 20))
    lengths = {query: len(seen(rule, turns, query)) for query in (6, 7, 9, 10, 16, 17, 19, 20)}
    assert lengths == {6: 2, 7: 8, 9: 10, 10: 2, 16: 2, 17: 18, 19: 20, 20: 2}


def test_a_tail_longer_than_its_prompt_stays_in_its_turn() -> None:
    rule, turns = LayerRule(2, full_tail=100), (Turn(0, 4, 8), Turn(8, 10))
    assert [looks_back(rule, turns, position) for position in range(11)] == [True] * 4 + [False] * 4 + [True] * 2 + [
        False
    ]


def test_a_position_belongs_to_the_turn_that_started_last() -> None:
    turns = (Turn(0, 4, 8), Turn(8, 10))
    assert [turn_of(turns, position).start for position in (0, 7, 8, 99)] == [0, 0, 8, 8]
    with pytest.raises(ValueError, match="before the first turn"):
        turn_of((Turn(5, 6),), 4)


# Everything else agrees with the definition.


@given(layer_rules(), turn_lists(), SPANS)
def test_the_mask_agrees(rule: LayerRule, turns: tuple[Turn, ...], span: tuple[int, int]) -> None:
    start, stop = span
    mask = visibility_mask(rule, turns, start, stop)
    assert mask.tolist() == [[visible(rule, turns, q, k) for k in range(stop)] for q in range(start, stop)]


@given(layer_rules(), turn_lists(), SPANS)
def test_query_runs_agree(rule: LayerRule, turns: tuple[Turn, ...], span: tuple[int, int]) -> None:
    start, stop = span
    runs = query_runs(rule, turns, start, stop)
    assert [runs[0].start, *(run.stop for run in runs)] == [*(run.start for run in runs), stop]
    assert runs[0].start == start
    assert all(run.start < run.stop for run in runs)
    assert all(first.sees_all != second.sees_all for first, second in pairwise(runs))
    for run in runs:
        for query in range(run.start, run.stop):
            keys = seen(rule, turns, query)
            if run.sees_all:
                assert keys == set(range(query + 1))
            else:
                assert rule.window is not None
                band = set(range(query - rule.window + 1, query + 1))
                sinks = set(range(rule.sink_tokens))
                assert not band & sinks, "a key would be counted twice"
                assert keys == band | sinks


@given(layer_rules(), turn_lists(), SPANS)
def test_attended_keys_agree(rule: LayerRule, turns: tuple[Turn, ...], span: tuple[int, int]) -> None:
    start, stop = span
    assert attended_keys(rule, turns, start, stop) == sum(len(seen(rule, turns, q)) for q in range(start, stop))


def futures(rule: LayerRule, turns: tuple[Turn, ...], computed: int, continues: bool) -> set[int]:
    """Keys below `computed` that some query from there on sees, in a long generation or in a turn that follows."""
    last = turns[-1]
    horizon = max(computed, last.generated_start) + 40
    timelines: list[tuple[Turn, ...]] = [turns]
    if continues:
        timelines += [
            (*turns[:-1], Turn(last.start, last.generated_start, stop), Turn(stop, stop + 5))
            for stop in (max(computed, last.generated_start) + 1, horizon - 20)
        ]
    queries = range(computed, horizon)
    return {
        key
        for key in range(computed)
        if any(visible(rule, timeline, query, key) for timeline in timelines for query in queries)
    }


@given(layer_rules(), turn_lists(), st.integers(0, 60), st.booleans())
def test_what_must_be_kept_is_exactly_what_a_later_query_can_see(
    rule: LayerRule, turns: tuple[Turn, ...], computed: int, continues: bool
) -> None:
    keeps_all = keeps_everything(rule, computed, turns[-1].generated_start, continues)
    first = first_needed(rule, computed, keeps_all)
    kept = {key for key in range(computed) if key < rule.sink_tokens or key >= first}
    assert kept == futures(rule, turns, computed, continues)


def test_an_adapter_begins_with_the_first_turn_whose_prompt_ends_beyond_the_window() -> None:
    turns = (Turn(0, 8, 12), Turn(12, 15, 20), Turn(20, 90))
    assert adapter_start(8, turns) == 12
    assert adapter_start(7, turns) == 0
    assert adapter_start(15, turns) == 20
    assert adapter_start(90, turns) is None
    assert adapter_start(None, turns) == 0, "full attention has no prompts that fit better than others"


@given(turn_lists(), st.integers(1, 40), st.integers(0, 10))
def test_turns_still_to_come_do_not_move_an_adapters_start(turns: tuple[Turn, ...], window: int, more: int) -> None:
    """What was computed so far stays what it was: a start that was found stays, none found comes at a new turn."""
    start = adapter_start(window, turns)
    *closed, last = turns
    stop = last.generated_start + more + 1
    later = adapter_start(window, (*closed, Turn(last.start, last.generated_start, stop), Turn(stop, stop + 5)))
    assert later == start or (start is None and later in (None, stop))


def needed_by_brute_force(rules: Sequence[LayerRule], prompt_stop: int, block_size: int) -> list[torch.Tensor]:
    """Whether each layer must have a position's K and V, for the prompt's last token and some after it: bool [n].

    By the oracle's mask, from the last layer down: whose K and V are needed, and all of its block, must go through the
    layer below.
    """
    num_tokens = prompt_stop + 3
    queries = torch.arange(num_tokens) >= prompt_stop - 1
    blocks = torch.arange(num_tokens) // block_size
    needed: list[torch.Tensor] = []
    for rule in reversed(rules):
        keys = visibility_mask(rule, (Turn(0, prompt_stop),), 0, num_tokens)[queries].any(0)
        queries = torch.isin(blocks, blocks[keys])
        needed.append(queries)
    return needed[::-1]


@settings(max_examples=400)
@given(
    st.one_of(
        st.lists(layer_rules(max_window=12), min_size=1, max_size=4),
        st.lists(st.builds(LayerRule, st.integers(1, 12), st.integers(0, 9)), min_size=2, max_size=5),
    ),
    st.integers(1, 60),
    st.sampled_from([1, 2, 4, 16]),
)
def test_every_token_runs_the_layers_in_which_it_is_needed_and_no_more(
    rules: list[LayerRule], prompt_stop: int, size: int
) -> None:
    needed = needed_by_brute_force(rules, prompt_stop, size)
    layers = [max((at + 1 for at, keys in enumerate(needed) if keys[token]), default=0) for token in range(prompt_stop)]
    assert [layers_needed(rules, prompt_stop, token, token + 1, size) for token in range(prompt_stop)] == layers
    for start, stop in ((0, prompt_stop // 2), (prompt_stop // 3, prompt_stop), (prompt_stop // 3, prompt_stop // 2)):
        if start < stop:
            assert layers_needed(rules, prompt_stop, start, stop, size) == max(layers[start:stop])
