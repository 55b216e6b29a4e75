"""Names of prefix states: the same exactly when the states are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.sessions.policy import SessionPolicy
from services.sessions.prefix import prefix_ids, prefix_scope
from swaa_runtime.recipe import LayerRule, Recipe
from swaa_runtime.visibility import Turn, looks_back

POLICY = SessionPolicy(ttl_s=60.0, checkpoint_tokens=8, prefix_ttl_s=60.0)
RECIPE = Recipe(window=4, sink_tokens=1, full_decode=True, full_tail=3)


def ids(
    tokens: list[int],
    turns: tuple[Turn, ...] = (),
    recipe: Recipe = RECIPE,
    scope: str = "acme",
    model: str = "m",
    policy: SessionPolicy = POLICY,
) -> list[tuple[int, str]]:
    return prefix_ids(scope, model, policy, recipe, tokens, turns or (Turn(0, len(tokens)),))


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 3), max_size=40))
def test_equal_starts_have_equal_names_and_others_have_not(left: list[int], right: list[int]) -> None:
    open_end = (Turn(0, 1000),)  # no tail in sight
    ours, theirs = ids(left, open_end), ids(right, open_end)
    assert [count for count, _ in ours] == list(range(8, len(left) + 1, 8))
    for (count, name), (_, other) in zip(ours, theirs, strict=False):
        assert (name == other) == (left[:count] == right[:count])


@st.composite
def timelines(draw: st.DrawFn) -> tuple[Turn, ...]:
    turns, start = [], 0
    for prompt, generated in draw(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 6)), max_size=3)):
        turns.append(Turn(start, start + prompt, start + prompt + generated))
        start += prompt + generated
    return (*turns, Turn(start, start + draw(st.integers(1, 30))))


@given(timelines(), timelines(), st.booleans(), st.integers(0, 5))
def test_names_differ_exactly_where_other_tokens_look_back(
    left: tuple[Turn, ...], right: tuple[Turn, ...], full_decode: bool, full_tail: int
) -> None:
    recipe = Recipe(window=4, full_decode=full_decode, full_tail=full_tail)
    rule = LayerRule(4, 0, full_decode, full_tail)
    length = min(left[-1].generated_start, right[-1].generated_start)
    tokens = [7] * length
    for (count, ours), (_, theirs) in zip(ids(tokens, left, recipe), ids(tokens, right, recipe), strict=True):
        same = all(looks_back(rule, left, at) == looks_back(rule, right, at) for at in range(count))
        assert (ours == theirs) == same


@pytest.mark.parametrize(
    "change",
    [
        {"scope": "other"},
        {"model": "other"},
        {"recipe": replace(RECIPE, window=5)},
        {"policy": replace(POLICY, kv_format="int8")},
    ],
)
def test_everything_else_that_a_state_depends_on_is_in_its_name(change: dict[str, object]) -> None:
    tokens = list(range(20))
    assert not set(ids(tokens)) & set(ids(tokens, **change))  # type: ignore[arg-type]


def test_without_checkpoints_there_are_no_names() -> None:
    assert ids(list(range(20)), policy=replace(POLICY, checkpoint_tokens=0)) == []


def test_who_shares_with_whom() -> None:
    private = replace(POLICY, prefix_ttl_s=0.0)
    assert prefix_scope("acme", "one", POLICY) == prefix_scope("acme", "two", POLICY)
    scopes = {
        prefix_scope("acme", "one", POLICY),
        prefix_scope("acme", "one", private),
        prefix_scope("acme", "two", private),
        prefix_scope("bolt", "one", POLICY),
    }
    assert len(scopes) == 4


def test_a_state_with_the_adapter_is_not_one_without() -> None:
    """The same first tokens: of a prompt within the window, computed by the bare model, and of a longer one."""
    policy = SessionPolicy(3600.0, "raw", 4, 3600.0)
    recipe, tokens = Recipe(window=8, adapter="a@1"), list(range(20))
    short = prefix_ids("s", "m", policy, recipe, tokens[:8], (Turn(0, 8),))
    longer, longest = (prefix_ids("s", "m", policy, recipe, tokens[:n], (Turn(0, n),)) for n in (16, 20))
    assert short[0] != longer[0]
    assert longer[:3] == longest[:3]
    assert (
        prefix_ids("s", "m", policy, Recipe(window=8), tokens[:8], (Turn(0, 8),))
        == prefix_ids("s", "m", policy, Recipe(window=8), tokens, (Turn(0, 20),))[:2]
    ), "without an adapter a longer prompt shares the start of a short one"
    assert short != prefix_ids("s", "m", policy, Recipe(window=8, adapter="a@2"), tokens[:8], (Turn(0, 8),))
