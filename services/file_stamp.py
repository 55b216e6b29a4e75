"""Whether files have changed since somebody looked; and looking, for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeAlias

Stamp: TypeAlias = tuple[tuple[int, int, int] | None, ...]


WATCH_INTERVAL_S = 1.0


async def keep_refreshing(refresh: Callable[[], Awaitable[None]], interval_s: float) -> None:
    """Call `refresh` again and again, for ever. Cancel it to end it."""
    while True:
        await asyncio.sleep(interval_s)
        await refresh()


def stamp_of(files: Iterable[Path]) -> Stamp:
    """Changes with a file's content, also where a link is turned to another file, as Kubernetes does."""
    return tuple(_stamp_of_one(file) for file in files)


def _stamp_of_one(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
