"""What files say, read again when they change. Bad files change nothing: what was read last stays."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from swaa_runtime.errors import SwaaError

logger = logging.getLogger(__name__)

T = TypeVar("T")
Stamp: TypeAlias = tuple[int, int, int] | None

WATCH_INTERVAL_S = 1.0


class Reloaded(Generic[T]):
    """The last good content of some files. `refresh` belongs to one event loop, attributes may be read on any thread.

    Attributes:
        current: what they said when they were last right; the same object as long as that is equal.
        loaded_at_s: when they were last read and right, in seconds since 1970.
        error: why what is in them now is not used; empty if it is.
        num_failures: how many times they were not used: once for each change of theirs, or of the reason.
    """

    def __init__(self, what: str, files: Iterable[Path], read: Callable[[], tuple[T, Iterable[Path]]]) -> None:
        """Raises what `read` raises: a service does not start with bad files.

        Args:
            what: it is, for the log.
            files: those that are known before they are read.
            read: gives the content, and all files that it is from.
        """
        self._what = what
        self._read = read
        self._stamps = _stamps_of(files)
        self.num_failures = 0
        self.current, read_files = read()
        self._took(read_files)

    async def watch(self, interval_s: float = WATCH_INTERVAL_S) -> None:
        """Look whether the files changed, for ever. Cancel it to end it."""
        while True:
            await asyncio.sleep(interval_s)
            await self.refresh()

    async def refresh(self) -> None:
        """Read the files again if they changed, or were bad: time alone makes some good, or brings what was missing.

        Bad ones change nothing but `error`, and are told once.
        """
        stamps = _stamps_of(self._stamps)
        changed, self._stamps = stamps != self._stamps, stamps  # before reading: what comes meanwhile is seen next time
        if not changed and not self.error:
            return
        try:
            content, files = await asyncio.to_thread(self._read)
        except Exception as exc:  # a bug of ours must not end the watch: a key that is revoked later would live on
            self._refuse(exc, changed)
            return
        if content != self.current or self.error:
            logger.info("%s read again: %s", self._what, ", ".join(str(file) for file in self._stamps))
        if content != self.current:
            self.current = content
        self._took(files)

    def _took(self, files: Iterable[Path]) -> None:
        """The content is of these files: of those that were not known the stamps are of now."""
        self._stamps = {file: self._stamps.get(file, stamp) for file, stamp in _stamps_of(files).items()}
        self.loaded_at_s, self.error = time.time(), ""

    def _refuse(self, reason: Exception, changed: bool) -> None:
        expected = isinstance(reason, SwaaError)
        error = str(reason) if expected else f"unexpected {type(reason).__name__}"
        if changed or error != self.error:
            self.error = error
            self.num_failures += 1
            told = "the new %s is not used, the old one stays: %s"
            logger.error(told, self._what, error, exc_info=None if expected else reason)


def _stamps_of(files: Iterable[Path]) -> dict[Path, Stamp]:
    """Change with the files' content, also where a link is turned to another file, as Kubernetes does."""
    return {file: _stamp_of(file) for file in files}


def _stamp_of(file: Path) -> Stamp:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
