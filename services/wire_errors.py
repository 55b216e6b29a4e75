"""Errors of ours across a gRPC hop between our own processes: class and words survive, whatever the status says.

A status without them means that the other process, or the way to it, is gone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from services import errors as service_errors
from services.errors import ReplicaLost
from swaa_runtime import errors as runtime_errors
from swaa_runtime.errors import InvalidRequest, SwaaError

ERROR_KEY = "swaa-error-bin"
"""Trailing metadata; binary, as messages may hold any character."""


def error_metadata(error: SwaaError) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata that `error_from` reads."""
    fields: list[Any] = [str(error)]
    if isinstance(error, InvalidRequest):
        value = error.value if isinstance(error.value, str | int | float) else str(error.value)
        fields = [error.field, value, error.bound]
    return ((ERROR_KEY, json.dumps([type(error).__name__, fields]).encode()),)


def error_from(metadata: Iterable[tuple[str, Any]] | None, details: str) -> SwaaError:
    """The error that the other end raised, or ReplicaLost if it did not say."""
    for key, value in metadata or ():
        if key == ERROR_KEY:
            return _decode(value)
    return ReplicaLost(f"the replica is gone: {details}")


def _decode(data: bytes) -> SwaaError:
    try:
        name, fields = json.loads(data)
        cls = _error_class(name)
        return cls(*_texts(fields, 3 if issubclass(cls, InvalidRequest) else 1))
    except (ValueError, TypeError) as exc:
        return ReplicaLost(f"the replica's error cannot be read: {exc}")


def _texts(fields: Sequence[Any], count: int) -> Sequence[Any]:
    if len(fields) != count:
        raise ValueError(f"{len(fields)} fields, expected {count}")
    return fields


def _error_class(name: str) -> type[SwaaError]:
    """An error class of ours by name; only of ours, whatever the bytes say."""
    for module in (runtime_errors, service_errors):
        cls = getattr(module, name, None)
        if isinstance(cls, type) and issubclass(cls, SwaaError):
            return cls
    raise ValueError(f"{name!r} is no error of ours")
