"""What is run, and what becomes of it. Imports nothing of ours: atheris sees only what is imported after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st


@dataclass(frozen=True, slots=True)
class Target:
    """Something that takes what a stranger made. `run` raises for what is a bug, and for nothing else."""

    name: str
    inputs: st.SearchStrategy[Any]
    run: Callable[[Any], None]


@dataclass(slots=True)
class Outcome:
    """What became of one target. `failures`: an input by the place that it failed at."""

    name: str
    num_inputs: int = 0
    took_s: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)
