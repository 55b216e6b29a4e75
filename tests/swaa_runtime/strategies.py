"""Hypothesis strategies of the runtime's vocabulary."""

from __future__ import annotations

from hypothesis import strategies as st

from swaa_runtime.recipe import LayerRule, LayerSelection, Recipe
from swaa_runtime.visibility import Turn

SLICES = ("1::2", "::2", "::3", "-1:", ":1", "::-1", ":")


def layer_selections(num_layers: int) -> st.SearchStrategy[LayerSelection]:
    """Slices that select something, lists of indices, and nothing."""
    indices = st.lists(st.integers(0, num_layers - 1), max_size=num_layers).map(tuple)
    return st.one_of(st.sampled_from(SLICES), indices, st.sampled_from(["", ()]))


def recipes(num_layers: int, max_window: int = 60) -> st.SearchStrategy[Recipe]:
    """Any recipe: windows from 1, and full attention now and then."""
    return st.builds(
        Recipe,
        window=st.sampled_from([1, 1, 2, 3, None, *range(4, max_window + 1)]),
        sink_tokens=st.sampled_from([0, *range(20)]),
        full_layers=st.sampled_from([(), ""]) | layer_selections(num_layers),
        lookback_layers=st.none() | layer_selections(num_layers),
        full_decode=st.booleans(),
        full_tail=st.sampled_from([0, 0, 0, 0, *range(1, 30)]),
    )


@st.composite
def layer_rules(draw: st.DrawFn, max_window: int = 30) -> LayerRule:
    """Any rule of one layer, as `Recipe.resolve` makes them; mostly sliding ones, half of which never look back."""
    if draw(st.integers(0, 7)) == 7:
        return LayerRule()
    full_decode, full_tail = draw(st.sampled_from([(False, 0), (True, 0), (False, 1), (True, 1), (False, 0)]))
    return LayerRule(
        window=draw(st.sampled_from([1, 1, 1, 2, 2, *range(3, max_window + 1)])),
        sink_tokens=draw(st.sampled_from([0, *range(13)])),
        full_decode=full_decode,
        full_tail=full_tail * draw(st.integers(1, 15)),
    )


@st.composite
def turn_lists(draw: st.DrawFn, max_turns: int = 3, max_tokens: int = 20) -> tuple[Turn, ...]:
    """Consecutive turns, of which the last is open."""
    turns: list[Turn] = []
    start = 0
    for _ in range(draw(st.integers(0, max_turns - 1))):
        generated_start = start + draw(st.integers(1, max_tokens))
        stop = generated_start + draw(st.integers(1, max_tokens))
        turns.append(Turn(start, generated_start, stop))
        start = stop
    return (*turns, Turn(start, start + draw(st.integers(1, max_tokens))))
