"""Quality between measured lengths; the shipped catalogue; what is refused of a damaged one."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest

from services.gateway import catalog as catalog_module
from services.gateway.catalog import QualityTable, load_catalog
from swaa_runtime.errors import InvalidRecipe, InvalidRequest, ModelNotSupported

from .builders import make_catalog

SMOLLM2_LAYERS = 30
TABLE = QualityTable("made up", (1000, 2000, 8000), {"full": (1.0, 0.8, 0.0), "a": (0.9, 0.5, 0.1), "b": (1, 0.9, 0)})


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    [
        (1, 0.9),
        (1000, 0.9),
        (round(1000 * math.sqrt(2)), 0.7),  # half way on a scale of logarithms
        (2000, 0.5),
        (4000, 0.3),
        (8000, 0.1),
        (1_000_000, 0.1),
    ],
)
def test_recall_is_linear_in_log_length_and_flat_beyond_the_ends(num_tokens: int, expected: float) -> None:
    assert TABLE.recall_at("a", num_tokens) == pytest.approx(expected, abs=1e-3)


def test_quality_is_relative_to_full_attention_and_at_most_1() -> None:
    assert TABLE.quality_at("a", 2000) == pytest.approx(0.5 / 0.8)
    assert TABLE.quality_at("b", 2000) == 1.0  # measured above full attention: chance
    assert TABLE.quality_at("full", 3000) == 1.0


def test_where_full_attention_finds_nothing_every_recipe_is_as_good() -> None:
    assert TABLE.quality_at("a", 8000) == 1.0


def test_an_unknown_recipe_is_refused_by_the_name_of_its_header() -> None:
    with pytest.raises(InvalidRequest, match=r"x-swaa-recipe is 'best': unknown recipe; known are full, tail, sliding"):
        make_catalog().recipe("x-swaa-recipe", "best")


def test_the_shipped_catalogue_is_whole() -> None:
    catalog = load_catalog("smollm2", SMOLLM2_LAYERS)
    assert "full" in catalog.recipes
    assert {"quality", "balanced", "interactive"} <= set(catalog.sla_classes)
    lengths = catalog.quality.lengths_tokens
    assert list(lengths) == sorted(set(lengths))
    for name, named in catalog.recipes.items():
        assert named.name == name
        assert len(named.rules) == SMOLLM2_LAYERS
        assert len(catalog.quality.recall[name]) == len(lengths)
        assert all(0 <= recall <= 1 for recall in catalog.quality.recall[name])


def test_the_default_model_has_something_for_every_class() -> None:
    catalog = load_catalog("smollm2", SMOLLM2_LAYERS)
    for sla in catalog.sla_classes.values():
        assert any(catalog.quality.quality_at(name, 500) >= sla.min_quality for name in catalog.recipes)


def test_a_model_without_a_quality_table_is_not_served() -> None:
    with pytest.raises(ModelNotSupported, match="no quality table of model 'other' is shipped; measure one first"):
        load_catalog("other", SMOLLM2_LAYERS)


class Files:
    """The shipped files, to be damaged."""

    def __init__(self) -> None:
        names = ("recipes.json", "sla_classes.json", "quality_smollm2.json")
        self.content: dict[str, Any] = {name: copy.deepcopy(catalog_module._read(name)) for name in names}

    def read(self, name: str) -> Any:
        return json.loads(json.dumps(self.content[name]))


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> Files:
    shipped = Files()
    monkeypatch.setattr(catalog_module, "_read", shipped.read)
    return shipped


def test_a_recipe_that_was_changed_after_it_was_measured_is_refused(shipped: Files) -> None:
    entry = next(entry for entry in shipped.content["recipes.json"] if entry["name"] == "sliding")
    entry["recipe"]["window"] += 1
    with pytest.raises(ModelNotSupported, match="not measured for recipe 'sliding' as it is"):
        load_catalog("smollm2", SMOLLM2_LAYERS)


def test_a_recipe_that_was_never_measured_is_refused(shipped: Files) -> None:
    del shipped.content["quality_smollm2.json"]["recipes"]["sliding"]
    with pytest.raises(ModelNotSupported, match="not measured for recipe 'sliding'"):
        load_catalog("smollm2", SMOLLM2_LAYERS)


def test_a_recipe_written_in_another_way_is_the_same_recipe(shipped: Files) -> None:
    entry = next(entry for entry in shipped.content["recipes.json"] if entry["name"] == "sliding")
    entry["recipe"] = {"sink_tokens": entry["recipe"]["sink_tokens"], "full_tail": 0, **entry["recipe"]}
    assert "sliding" in load_catalog("smollm2", SMOLLM2_LAYERS).recipes


@pytest.mark.parametrize(
    ("change", "field", "bound"),
    [
        ({"window": 0}, "window", "must be an integer in 1.."),
        ({"window": "all"}, "window", "must be an integer in 1.."),
        ({"sink_tokens": -1}, "sink_tokens", "must be an integer in 0.."),
        ({"full_layers": [30]}, "full_layers", r"layer must be in 0..29"),
        ({"full_layers": "31::2"}, "full_layers", r"slice bounds must be in -30..30"),
        ({"lookback_layers": [-1]}, "lookback_layers", "layer must be an integer of at least 0"),
        ({"sinks": 4}, "sinks", "unknown recipe field"),
    ],
)
def test_a_recipe_that_the_model_cannot_have_is_named(
    shipped: Files, change: dict[str, Any], field: str, bound: str
) -> None:
    entry = next(entry for entry in shipped.content["recipes.json"] if entry["name"] == "sliding")
    entry["recipe"].update(change)
    with pytest.raises(InvalidRecipe, match=bound) as caught:
        load_catalog("smollm2", SMOLLM2_LAYERS)
    assert caught.value.field == field


def test_a_recipe_with_an_adapter_is_refused_as_none_can_be_loaded(shipped: Files) -> None:
    shipped.content["recipes.json"][-1]["recipe"]["adapter"] = "tuned"
    with pytest.raises(ModelNotSupported, match="needs adapter 'tuned', which is not loaded"):
        load_catalog("smollm2", SMOLLM2_LAYERS)


@pytest.mark.parametrize(("file", "name"), [("recipes.json", "full"), ("sla_classes.json", "balanced")])
def test_a_catalogue_needs_full_attention_and_the_default_class(shipped: Files, file: str, name: str) -> None:
    shipped.content[file] = [entry for entry in shipped.content[file] if entry["name"] != name]
    with pytest.raises(InvalidRequest, match="needs a recipe 'full' and a class 'balanced'"):
        load_catalog("smollm2", SMOLLM2_LAYERS)
