"""The recipes, SLA classes and quality table that ship as data. Read once, checked against the model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from services.gateway.sla import DEFAULT_SLA_CLASS, DEFAULT_TENANT, SlaClass, TenantPolicy
from swaa_runtime.errors import InvalidRequest, ModelNotSupported
from swaa_runtime.recipe import LayerRule, Recipe


@dataclass(frozen=True, slots=True)
class NamedRecipe:
    """A recipe of the catalogue, with its rules in this model's layers."""

    name: str
    description: str
    recipe: Recipe
    rules: tuple[LayerRule, ...]


@dataclass(frozen=True, slots=True)
class QualityTable:
    """Measured needle recall of each recipe at some prompt lengths."""

    source: str
    lengths_tokens: tuple[int, ...]
    recall: Mapping[str, tuple[float, ...]]

    def recall_at(self, name: str, num_tokens: int) -> float:
        """Recall at a prompt length: linear in log length between measured ones, the nearest beyond them."""
        points = self.recall[name]
        if num_tokens <= self.lengths_tokens[0]:
            return points[0]
        for index in range(1, len(points)):
            low, high = self.lengths_tokens[index - 1], self.lengths_tokens[index]
            if num_tokens <= high:
                share = math.log(num_tokens / low) / math.log(high / low)
                return points[index - 1] + share * (points[index] - points[index - 1])
        return points[-1]

    def quality_at(self, name: str, num_tokens: int) -> float:
        """Recall relative to full attention at the same length, 0..1."""
        full = self.recall_at("full", num_tokens)
        return 1.0 if full <= 0.0 else min(1.0, self.recall_at(name, num_tokens) / full)


@dataclass(frozen=True, slots=True)
class Catalog:
    """What the planner may choose from, what it knows of its quality, and what tenants may ask for.

    `tenants`: by name; "default" is always there and holds for those that are not named.
    """

    recipes: Mapping[str, NamedRecipe]
    sla_classes: Mapping[str, SlaClass]
    quality: QualityTable
    tenants: Mapping[str, TenantPolicy] = field(default_factory=lambda: {DEFAULT_TENANT: TenantPolicy()})

    def tenant(self, name: str) -> TenantPolicy:
        """What a tenant may ask for."""
        return self.tenants.get(name, self.tenants[DEFAULT_TENANT])

    def recipe(self, field: str, name: str) -> NamedRecipe:
        """A recipe by name. Raises InvalidRequest naming `field`."""
        if name not in self.recipes:
            raise InvalidRequest(field, name, f"unknown recipe; known are {', '.join(self.recipes)}")
        return self.recipes[name]


def load_catalog(model_name: str, num_layers: int) -> Catalog:
    """Read the shipped catalogue for a model.

    Raises:
        InvalidRecipe: if a recipe names layers the model lacks.
        ModelNotSupported: if no quality table of the model is shipped, or a recipe needs an adapter that is not loaded.
    """
    recipes = {}
    for entry in _read("recipes.json"):
        recipe = Recipe.from_mapping(entry["recipe"])
        if recipe.adapter is not None:
            raise ModelNotSupported(f"recipe {entry['name']!r} needs adapter {recipe.adapter!r}, which is not loaded")
        recipes[entry["name"]] = NamedRecipe(entry["name"], entry["description"], recipe, recipe.resolve(num_layers))
    classes = {entry["name"]: SlaClass(**entry) for entry in _read("sla_classes.json")}
    if "full" not in recipes or DEFAULT_SLA_CLASS not in classes:
        raise InvalidRequest("catalogue", sorted(recipes), f"needs a recipe 'full' and a class {DEFAULT_SLA_CLASS!r}")
    return Catalog(recipes, classes, _load_quality(model_name, recipes))


def _load_quality(model_name: str, recipes: Mapping[str, NamedRecipe]) -> QualityTable:
    try:
        table = _read(f"quality_{model_name}.json")
    except FileNotFoundError:
        raise ModelNotSupported(f"no quality table of model {model_name!r} is shipped; measure one first") from None
    for name, entry in recipes.items():
        measured = table["recipes"].get(name)
        if measured is None or Recipe.from_mapping(measured["recipe"]) != entry.recipe:
            raise ModelNotSupported(
                f"the quality table of {model_name!r} was not measured for recipe {name!r} as it is"
            )
    measured = table["measured"]
    return QualityTable(
        source=f"{table['task']}, {measured['samples']} samples a point, {measured['hardware']}, {measured['date']}",
        lengths_tokens=tuple(table["lengths_tokens"]),
        recall={name: tuple(entry["recall"]) for name, entry in table["recipes"].items()},
    )


def _read(name: str) -> Any:
    return json.loads(files("services.gateway").joinpath("data", name).read_text(encoding="utf-8"))
