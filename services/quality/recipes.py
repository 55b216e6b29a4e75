"""Recipes by name, from JSON or YAML."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swaa_runtime.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Row:
    """A recipe under the name that it has in tables."""

    name: str
    recipe: Recipe
    description: str = ""


def read_recipes(file: Path) -> list[Row]:
    """Recipes in the file's order: a list of {name, recipe, description?}, alone or under "recipes"; or {name: recipe}.

    Raises:
        ValueError: if it has another form, or a name comes twice.
        InvalidRecipe: if a recipe has unknown fields or bad values.
    """
    data = _read(file)
    if isinstance(data, dict) and "recipes" in data:
        data = data["recipes"]
    if isinstance(data, dict):
        data = [{"name": name, "recipe": value} for name, value in data.items()]
    if not isinstance(data, list) or not all(isinstance(item, dict) and "name" in item for item in data):
        raise ValueError(
            f"{file.name}: must be a list of objects with 'name' and 'recipe', or an object of recipes by name"
        )
    rows = [
        Row(item["name"], Recipe.from_mapping(item.get("recipe") or {}), item.get("description", "")) for item in data
    ]
    names = [row.name for row in rows]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{file.name}: recipe {sorted(twice)[0]!r} comes twice")
    return rows


def _read(file: Path) -> Any:
    text = file.read_text(encoding="utf-8")
    if file.suffix not in (".yaml", ".yml"):
        return json.loads(text)
    import yaml  # here: the only thing it is needed for

    return yaml.safe_load(text)
