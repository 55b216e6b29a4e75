"""Tasks by the names that the command line takes: `single`, `multi_value@both`, `ruler:niah.jsonl`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

from services.quality.loaders import LOADERS
from services.quality.tasks.common_words import CommonWords
from services.quality.tasks.needles import Needles
from services.quality.tasks.passages import Passages
from services.quality.tasks.sample import FileTask, Order, Task
from services.quality.tasks.variables import VariableTracking

TASKS: tuple[Needles | VariableTracking | CommonWords | Passages, ...] = (
    Needles("single"),
    Needles("multi_key", num_keys=4),
    Needles("multi_query", num_keys=4, num_asked=2),
    Needles("multi_value", num_values=2),
    VariableTracking(),
    CommonWords(),
    Passages(),
)
"""Scaled for SmolLM2-135M: RULER asks for 4 numbers where two are asked for here."""

DEFAULT_TASKS = tuple(task.name for task in TASKS)


class UnknownTask(ValueError):
    """No task has that name."""


def find_task(text: str) -> Task | FileTask:
    """The task that a name means; `@start` or `@both` after it moves the question.

    Raises:
        UnknownTask: naming those there are.
        InvalidFile: if a file is named that cannot be read as what it is said to be.
    """
    kind, colon, path = text.partition(":")
    if colon:
        if kind not in LOADERS:
            raise UnknownTask(f"task {text!r}: files are {', '.join(f'{name}:PATH' for name in LOADERS)}")
        return LOADERS[kind](Path(path))
    name, at, order = text.partition("@")
    if at and order not in get_args(Order):
        raise UnknownTask(f"task {text!r}: the question stands at {', '.join(get_args(Order))}, not {order!r}")
    for task in TASKS:
        if task.name == name:
            return replace(task, name=text, order=order) if at and order != "end" else task  # type: ignore[arg-type]
    raise UnknownTask(f"task {text!r}: known are {', '.join(DEFAULT_TASKS)}, and files as {', '.join(LOADERS)}:PATH")
