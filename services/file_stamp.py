"""Whether a file has changed, as cheaply as that can be known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Stamp = tuple[tuple[int, int, int] | None, ...]


def stamp_of(files: Sequence[Path]) -> Stamp:
    """Changes with a file's content, also where a link is turned to another file, as Kubernetes does."""
    return tuple(_stamp_of(file) for file in files)


def _stamp_of(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
