"""The file that API keys are kept in: JSON, written by `swaa keys`, read by gateways. It holds digests, never keys."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from services.gateway.auth.api_keys import ApiKey, KeyRing
from swaa_runtime.errors import InvalidRequest

NOT_SHOWN = "(not shown)"
"""Stands for values of this file in messages: somebody may have put a key where its digest belongs."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: list[ApiKey]


def read_keys(path: Path) -> list[ApiKey]:
    """The keys of a file, in its order. Raises InvalidRequest naming file and field, for what is wrong in it."""
    try:
        keys = _File.model_validate_json(path.read_bytes()).keys
    except OSError as exc:
        raise InvalidRequest(str(path), exc.strerror, "must be a readable file of API keys") from None
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise InvalidRequest(f"{path}: {where}", NOT_SHOWN, first["msg"]) from None
    ids = [key.id for key in keys]
    for key_id in ids:
        if ids.count(key_id) > 1:
            raise InvalidRequest(f"{path}: keys", key_id, "is there twice")
    return keys


def read_key_ring(path: Path) -> KeyRing:
    """The same, for checking credentials."""
    return KeyRing(read_keys(path))


@contextlib.contextmanager
def editing(path: Path) -> Iterator[list[ApiKey]]:
    """The file's keys, to be changed in the body; written whole on leaving it well. No file is one without keys.

    One at a time: who revokes a key must not be undone by who makes one. Raises InvalidRequest, as `read_keys` does.
    """
    target = path.resolve()
    try:
        with target.with_name(f"{target.name}.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = read_keys(target) if target.exists() else []
            yield keys
            _write(target, _File(keys=keys).model_dump_json(indent=2, exclude_defaults=True) + "\n")
    except OSError as exc:
        raise InvalidRequest(str(path), exc.strerror, "must be a file that can be written") from None


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
