"""Whether files have changed since somebody looked."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

Stamp: TypeAlias = tuple[tuple[int, int, int] | None, ...]


def stamp_of(files: Iterable[Path]) -> Stamp:
    """Changes with a file's content, also where a link is turned to another file, as Kubernetes does."""
    return tuple(_stamp_of_one(file) for file in files)


def _stamp_of_one(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
