"""Every file below docs/ that is generated, whole or in part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from docs.generate import limits, memory, metrics, settings
from docs.generate.api import api_page
from docs.generate.licences import licences_page
from docs.generate.markdown import fill
from docs.generate.pictures import pictures

FOLDER = Path(__file__).parents[1]
FILLED = ("operating.md", "recipes.md")
"""Written by hand, but for marked parts."""


def pages() -> dict[str, str]:
    """Their text as it should be now, by name."""
    parts = {
        "settings": settings.settings_table(),
        "kv-memory": memory.memory_table(),
        "recipe-costs": memory.cost_table(),
        "limits": limits.limits_table(),
        "metrics": metrics.metrics_table(),
    }
    filled = {name: fill((FOLDER / name).read_text(encoding="utf-8"), parts) for name in FILLED}
    drawn = {f"pictures/{name}.svg": text for name, text in pictures().items()}
    return {"api.md": api_page(), "licences.md": licences_page(), **filled, **drawn}


def stale(made: Mapping[str, str]) -> list[str]:
    """Names of files that are not as they should be, pictures that nobody makes any more among them."""
    extra = {f"pictures/{path.name}" for path in (FOLDER / "pictures").glob("*")} - made.keys()
    return sorted(name for name, text in made.items() if _read(name) != text) + sorted(extra)


def _read(name: str) -> str | None:
    path = FOLDER / name
    return path.read_text(encoding="utf-8") if path.exists() else None
