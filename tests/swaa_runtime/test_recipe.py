from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swaa_runtime.errors import InvalidRecipe
from swaa_runtime.recipe import MAX_TOKENS_FIELD, LayerRule, Recipe, select_layers
from tests.swaa_runtime.strategies import recipes


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("window", 0),
        ("window", -1),
        ("window", True),
        ("window", 4.0),
        ("window", "4"),
        ("window", MAX_TOKENS_FIELD + 1),
        ("sink_tokens", -1),
        ("sink_tokens", True),
        ("sink_tokens", None),
        ("full_tail", -1),
        ("full_tail", False),
        ("full_decode", 1),
        ("full_decode", "true"),
        ("thinking", None),
        ("adapter", ""),
        ("adapter", 3),
        ("full_layers", "1"),
        ("full_layers", "a:b"),
        ("full_layers", "1:2:3:4"),
        ("full_layers", "::0"),
        ("full_layers", [-1]),
        ("full_layers", [True]),
        ("full_layers", ["1"]),
        ("full_layers", 3),
        ("full_layers", None),
        ("lookback_layers", "::0"),
        ("lookback_layers", [1.5]),
        ("lookback_layers", {"1": 2}),
    ],
)
def test_a_wrong_value_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        Recipe.from_mapping({field: value})
    assert caught.value.field == field
    assert repr(caught.value.value)[:20] in str(caught.value)


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(InvalidRecipe, match="unknown recipe field") as caught:
        Recipe.from_mapping({"window": 4, "windows": 4})
    assert caught.value.field == "windows"


@pytest.mark.parametrize("field", ["full_layers", "lookback_layers"])
@pytest.mark.parametrize("selection", [[4], [0, 9], "5:", ":5", "-5:", "4:", "3:1", "9::2"])
def test_layers_that_a_model_lacks_are_refused(field: str, selection: object) -> None:
    recipe = Recipe.from_mapping({"window": 4, field: selection})
    with pytest.raises(InvalidRecipe) as caught:
        recipe.resolve(4)
    assert caught.value.field == field


def test_layers_that_a_model_lacks_are_refused_even_where_they_would_change_nothing() -> None:
    with pytest.raises(InvalidRecipe):
        Recipe(window=None, full_layers=(7,)).resolve(4)


@pytest.mark.parametrize(
    ("selection", "layers"),
    [
        ("1::2", {1, 3, 5}),
        ("3::4", {3}),
        (":2", {0, 1}),
        ("-2:", {4, 5}),
        ("::-1", {0, 1, 2, 3, 4, 5}),
        ("0:6", {0, 1, 2, 3, 4, 5}),
        ("", set()),
        ((), set()),
        ((4, 1), {1, 4}),
    ],
)
def test_selections(selection: str | tuple[int, ...], layers: set[int]) -> None:
    assert select_layers("full_layers", selection, 6) == layers


def test_resolve_gives_each_layer_its_rule() -> None:
    recipe = Recipe(window=8, sink_tokens=2, full_layers=(0,), lookback_layers=(0, 1, 3), full_decode=True, full_tail=5)
    looks_back = LayerRule(8, 2, True, 5)
    assert recipe.resolve(4) == (LayerRule(), looks_back, LayerRule(8, 2), looks_back)


def test_all_layers_look_back_unless_named_and_none_if_empty() -> None:
    assert Recipe(window=8, full_tail=5).resolve(2) == (LayerRule(8, 0, False, 5),) * 2
    assert Recipe(window=8, full_tail=5, lookback_layers=()).resolve(2) == (LayerRule(8),) * 2
    assert Recipe(window=8, full_tail=5, lookback_layers="").resolve(2) == (LayerRule(8),) * 2


def test_no_window_is_full_attention_everywhere() -> None:
    assert Recipe(sink_tokens=4, full_decode=True, full_tail=3).resolve(2) == (LayerRule(), LayerRule())


@given(recipes(6))
def test_a_recipe_survives_json(recipe: Recipe) -> None:
    again = Recipe.from_mapping(json.loads(json.dumps(recipe.to_mapping())))
    assert again == recipe
    assert again.fingerprint() == recipe.fingerprint()


@given(recipes(6), recipes(6))
def test_fingerprints_are_equal_exactly_for_equal_recipes(first: Recipe, second: Recipe) -> None:
    assert (first.fingerprint() == second.fingerprint()) == (first == second)


@given(st.permutations([0, 2, 3, 3]))
def test_the_order_of_layer_indices_means_nothing(layers: list[int]) -> None:
    assert Recipe.from_mapping({"full_layers": layers}) == Recipe(full_layers=(0, 2, 3))


@pytest.mark.parametrize(
    "change",
    [
        {"window": 9},
        {"window": None},
        {"sink_tokens": 1},
        {"full_layers": [1]},
        {"lookback_layers": []},
        {"full_decode": True},
        {"full_tail": 1},
        {"thinking": True},
        {"adapter": "a"},
    ],
)
def test_each_field_is_part_of_the_fingerprint(change: dict[str, Any]) -> None:
    assert Recipe.from_mapping({"window": 8} | change).fingerprint() != Recipe(window=8).fingerprint()


AUTHORS = {"sliding_window_size": 2048, "keep_first": 10, "force_fa_decode": True, "non_sliding_layers": [1, 3]}


def test_the_authors_names_load_with_this_meaning() -> None:
    recipe = Recipe.from_swaa_config(AUTHORS)
    assert recipe == Recipe(window=2048, sink_tokens=10, full_decode=True, full_layers=(1, 3))


def test_the_authors_vllm_window_is_one_wider() -> None:
    assert Recipe.from_swaa_config(AUTHORS, "vllm").window == 2049
    assert Recipe.from_swaa_config(AUTHORS, "hf").window == 2048
    assert Recipe.from_swaa_config({"sliding_window_size": 0}, "vllm").window == 1
    assert Recipe.from_swaa_config({"sliding_window_size": None}, "vllm").window is None


@pytest.mark.parametrize(
    ("mapping", "convention"),
    [
        ({"window": 4}, "hf"),
        ({"sliding_window_size": 0}, "hf"),
        ({"sliding_window_size": True}, "vllm"),
        ({"sliding_window_size": "4"}, "vllm"),
        ({"sliding_window_size": -1}, "vllm"),
        ({"keep_first": -1}, "hf"),
        ({"sliding_window_size": 4}, "mlx"),
    ],
)
def test_a_wrong_swaa_config_is_refused(mapping: dict[str, Any], convention: Any) -> None:
    with pytest.raises(InvalidRecipe):
        Recipe.from_swaa_config(mapping, convention)
