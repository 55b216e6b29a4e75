"""The service's settings, as `services/config.py` has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from docs.generate.markdown import code, table
from services.config import PREFIX, ServeConfig


def settings_table() -> str:
    """Every setting. Raises ValueError for one that says nothing of itself."""
    rows = [_row(name, field) for name, field in ServeConfig.model_fields.items()]
    return table(["setting", "default", "may be", "meaning"], rows)


def _row(name: str, field: FieldInfo) -> list[str]:
    if not field.description:
        raise ValueError(f"ServeConfig.{name} has no description")
    return [code(PREFIX + name.upper()), _default(field.default), bounds(field), field.description]


def _default(value: Any) -> str:
    if value is None:
        return ""
    return code(value.as_posix() if isinstance(value, Path) else str(value)) if value != "" else ""


def bounds(field: FieldInfo) -> str:
    """The values that it takes, in words."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(map(code, map(str, get_args(field.annotation))))
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    told = []
    for bound in field.metadata:
        told += [f"{word} {getattr(bound, sign)}" for sign, word in signs.items() if hasattr(bound, sign)]
    return ", ".join(told)
