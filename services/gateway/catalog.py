"""The recipes, SLA classes, tenants' bounds and quality table that the planner works by. Read by `catalog_file`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.gateway.sla import DEFAULT_TENANT, SlaClass, TenantPolicy
from swaa_runtime.errors import InvalidRequest
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
    """How well each recipe did at some prompt lengths, 0..1: recall, or the accuracy that `source` names."""

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
