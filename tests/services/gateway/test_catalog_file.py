"""The shipped catalogues; what is refused of a damaged one, and how it is named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.gateway.catalog import Catalog
from services.gateway.catalog_file import ServedModel, catalog_path, load_catalog
from services.gateway.sla import TenantPolicy
from swaa_runtime.errors import InvalidRecipe, InvalidRequest, ModelNotSupported

SHIPPED = {"smollm2": 30, "qwen3-4b": 36, "qwen3-30b-a3b": 48, "llama-3.1-8b": 32}
"""Models by name, with their layers."""

TINY = """
recipes:
  - {name: full, description: all of it, recipe: {}}
  - {name: sliding, description: a window, recipe: {window: 64, sink_tokens: 4}}
sla_classes:
  - {name: balanced, description: in between, ttft_ms: 1000, tpot_ms: 100, min_quality: 0.5, priority: 10}
quality:
  source: made up
  lengths_tokens: [1000, 4000]
  scores: {full: [1, 0.8], sliding: [0.5, 0.2]}
"""


def shipped(name: str) -> Catalog:
    return load_catalog(catalog_path(None, name), ServedModel(SHIPPED[name]))[0]


class File:
    """A catalogue in a folder, to be changed."""

    def __init__(self, folder: Path, text: str = TINY) -> None:
        self.path = folder / "catalog.yaml"
        self.data: dict[str, Any] = yaml.safe_load(text)

    def load(self, num_layers: int = 4, **model: Any) -> Catalog:
        self.path.write_text(yaml.safe_dump(self.data), encoding="utf-8")
        return load_catalog(self.path, ServedModel(num_layers, **model))[0]

    def write_table(self, **changes: Any) -> None:
        """A measured table of these recipes, and the catalogue that names it."""
        del self.data["quality"]
        self.data["quality_table"] = "table.json"
        table = {
            "model_fingerprint": "abc",
            "task": "needles",
            "measured": {"samples": 40, "hardware": "a card", "date": "2026-01-01", "command": "x"},
            "lengths_tokens": [1000, 4000],
            "recipes": {
                "full": {"recipe": {"window": None}, "recall": [1.0, 0.5]},
                "sliding": {"recipe": {"sink_tokens": 4, "window": 64, "full_tail": 0}, "recall": [0.5, 0.25]},
            },
        }
        (self.path.parent / "table.json").write_text(json.dumps({**table, **changes}), encoding="utf-8")


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_catalogue_is_whole(name: str) -> None:
    catalog = shipped(name)
    assert {"quality", "balanced", "interactive"} <= set(catalog.sla_classes)
    for recipe, named in catalog.recipes.items():
        assert named.name == recipe
        assert len(named.rules) == SHIPPED[name]
        assert len(catalog.quality.recall[recipe]) == len(catalog.quality.lengths_tokens)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_class_can_be_met_by_more_than_full_attention(name: str) -> None:
    catalog = shipped(name)
    for sla in catalog.sla_classes.values():
        good = [each for each in catalog.recipes if catalog.quality.quality_at(each, 7000) >= sla.min_quality]
        assert "full" in good
        assert len(good) > 1 or (name, sla.name) == ("llama-3.1-8b", "quality")  # nothing else keeps 95 % untrained


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "smollm2"])
def test_figures_of_others_are_named_as_such(name: str) -> None:
    source = shipped(name).quality.source
    assert source.startswith("published, not measured here: arXiv 2512.10411")
    assert "LongMemEval_24k" in source


def test_a_shipped_catalogue_is_found_by_the_name_of_the_model_folder() -> None:
    assert catalog_path(None, "/models/Qwen3-4B").name == "qwen3-4b.yaml"
    assert catalog_path(Path("mine.yaml"), "/models/Qwen3-4B") == Path("mine.yaml")


def test_a_model_without_a_catalogue_is_told_what_to_do() -> None:
    with pytest.raises(
        ModelNotSupported, match=r"no catalogue of model 'other' is shipped \(there are llama.*SWAA_CATA"
    ):
        catalog_path(None, "/models/other")


def test_published_points_are_read_as_they_stand(file: File) -> None:
    catalog = file.load()
    assert catalog.quality.source == "made up"
    assert catalog.quality.recall == {"full": (1.0, 0.8), "sliding": (0.5, 0.2)}
    assert catalog.sla_classes["balanced"].ttft_ms == 1000
    assert catalog.tenant("anyone") == TenantPolicy()


def test_a_measured_table_is_read_from_beside_the_catalogue(file: File) -> None:
    file.write_table()
    catalog = file.load(fingerprint="abc")
    assert catalog.quality.source == "needles, 40 samples a point, a card, 2026-01-01"
    assert catalog.quality.recall["sliding"] == (0.5, 0.25)


def test_a_table_of_other_weights_says_so_in_its_source(file: File) -> None:
    file.write_table()
    assert file.load(fingerprint="def").quality.source.endswith(
        "; of other weights, or in another dtype, than are served here"
    )


def test_tenants_are_bounded_by_name_and_all_others_by_default(file: File) -> None:
    file.data["tenants"] = {"default": {"max_priority": 5}, "guest": {"max_priority": 0, "sla_classes": ["balanced"]}}
    catalog = file.load()
    assert catalog.tenant("guest") == TenantPolicy(0, frozenset({"balanced"}))
    assert catalog.tenant("anyone") == TenantPolicy(5, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sla_classes.0.ttft_ms": 0}, r"sla_classes\.0\.ttft_ms is 0: Input should be greater than 0"),
        ({"sla_classes.0.ttft_ms": "soon"}, r"sla_classes\.0\.ttft_ms is 'soon': Input should be a valid number"),
        ({"sla_classes.0.min_quality": 1.5}, r"min_quality is 1\.5: Input should be less than or equal to 1"),
        ({"sla_classes.0.priority": 1.5}, r"priority is 1\.5: Input should be a valid integer"),
        ({"sla_classes.0.ttft": 5}, r"sla_classes\.0\.ttft is 5: Extra inputs are not permitted"),
        ({"sla_classes.0.name": "odd"}, r"sla_classes is \['odd'\]: must have 'balanced'"),
        ({"recipes.0.name": "odd"}, r"recipes is \['odd', 'sliding'\]: must have 'full'"),
        ({"recipes.0.recipe": {"window": 8}}, r"must have 'full', with full attention"),
        ({"recipes.1.name": "full"}, r"recipes is 'full': is there twice"),
        ({"recipes.1.name": "a b"}, r"recipes\.1\.name is 'a b': String should match"),
        ({"recipes": []}, r"recipes is \[\]: List should have at least 1 item"),
        ({"colour": "red"}, r"colour is 'red': Extra inputs are not permitted"),
        ({"quality": None}, r"must have exactly one of quality_table and quality"),
        ({"quality_table": "table.json"}, r"must have exactly one of quality_table and quality"),
        ({"quality.scores": {"full": [1, 1]}}, r"quality is \['sliding'\]: every recipe must have scores"),
        ({"quality.scores.sliding": [1]}, r"quality\.sliding is \[1\.0\]: must have 2 scores, one a length"),
        ({"quality.scores.sliding": [1, 1.1]}, r"quality\.scores\.sliding\.1 is 1\.1: Input should be less than or"),
        ({"quality.lengths_tokens": [4000, 1000]}, r"lengths_tokens is \[4000, 1000\]: must ascend"),
        (
            {"tenants": {"guest": {"sla_classes": ["gold"]}}},
            r"tenants\.guest\.sla_classes is 'gold': unknown SLA class",
        ),
        ({"tenants": {"guest": {"max": 1}}}, r"tenants\.guest\.max is 1: Extra inputs"),
    ],
)
def test_what_is_wrong_is_named_by_file_field_value_and_bound(file: File, change: dict[str, Any], message: str) -> None:
    for where, value in change.items():
        *parents, last = where.split(".")
        node: Any = file.data
        for parent in parents:
            node = node[int(parent)] if isinstance(node, list) else node[parent]
        node[last] = value
    with pytest.raises(InvalidRequest, match=re.escape(str(file.path)) + ".*" + message):
        file.load()


@pytest.mark.parametrize(
    ("change", "field", "bound"),
    [
        ({"window": 0}, "window", "must be an integer in 1.."),
        ({"window": "all"}, "window", "must be an integer in 1.."),
        ({"sink_tokens": -1}, "sink_tokens", "must be an integer in 0.."),
        ({"full_layers": [4]}, "full_layers", r"layer must be in 0..3"),
        ({"full_layers": "5::2"}, "full_layers", r"slice bounds must be in -4..4"),
        ({"lookback_layers": [-1]}, "lookback_layers", "layer must be an integer of at least 0"),
        ({"sinks": 4}, "sinks", "unknown recipe field"),
    ],
)
def test_a_recipe_that_the_model_cannot_have_is_named(
    file: File, change: dict[str, Any], field: str, bound: str
) -> None:
    file.data["recipes"][1]["recipe"].update(change)
    with pytest.raises(InvalidRecipe, match=bound) as caught:
        file.load()
    assert caught.value.field == f"{file.path}: recipes.sliding.{field}"


def test_a_recipe_with_an_adapter_needs_it_loaded(file: File) -> None:
    file.data["recipes"][1]["recipe"]["adapter"] = "tuned"
    with pytest.raises(ModelNotSupported, match="'sliding' needs adapter 'tuned', which is not loaded"):
        file.load()
    loaded = file.load(adapters={"tuned": "tuned@01"}).recipes["sliding"].recipe
    assert loaded.adapter == "tuned@01", "what is planned and saved names its content"


def test_the_tuned_catalogue_is_the_shipped_one_with_the_shipped_adapter() -> None:
    path = catalog_path(None, "smollm2").with_name("smollm2-tuned.yaml")
    weights = path.parents[1] / "adapters" / "smollm2" / "sliding-512" / "adapter_model.safetensors"
    table = json.loads((path.parents[1] / "quality_smollm2.json").read_text(encoding="utf-8"))
    measured = table["recipes"]["tuned-512"]["recipe"]["adapter"]
    catalog, _ = load_catalog(path, ServedModel(30, adapters={"sliding-512": measured}))
    assert catalog.recipes["tuned-512"].recipe.adapter == measured
    assert weights.is_file()
    plain = shipped("smollm2")
    assert {name: named for name, named in catalog.recipes.items() if name != "tuned-512"} == plain.recipes
    assert (catalog.sla_classes, catalog.tenants) == (plain.sla_classes, plain.tenants)


def test_a_recipe_that_was_changed_after_it_was_measured_is_refused(file: File) -> None:
    file.write_table()
    file.data["recipes"][1]["recipe"]["window"] += 1
    with pytest.raises(ModelNotSupported, match=r"table\.json was not measured for recipe 'sliding' as it is"):
        file.load()


def test_a_recipe_that_was_never_measured_is_refused(file: File) -> None:
    file.write_table()
    file.data["recipes"].append({"name": "new", "description": "x", "recipe": {"window": 8}})
    with pytest.raises(ModelNotSupported, match="not measured for recipe 'new'"):
        file.load()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipes: [", r"must be YAML \(line 2\)|must be YAML \(line 1\)"),
        ("a: 1\na: 2\n", r"key 'a' is there twice.*must be YAML \(line 1\)"),
        ("a: !!python/object:os.system x", "must be YAML"),
        ("- 1", "file is"),
        ("", "file is None"),
    ],
)
def test_text_that_is_no_catalogue_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidRequest, match=message):
        load_catalog(path, ServedModel(4))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"none\.yaml is 'No such file or directory': must be a readable file"):
        load_catalog(tmp_path / "none.yaml", ServedModel(4))
