"""What a file says, read again when it changes. A bad file changes nothing: what was read last stays."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from services.file_stamp import WATCH_INTERVAL_S, keep_refreshing, stamp_of
from swaa_runtime.errors import SwaaError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Reloaded(Generic[T]):
    """The last good content of a file. Belongs to one event loop.

    Attributes:
        current: what it said when it was last right.
        error: why what is in the file now is not used; empty if it is.
    """

    def __init__(self, path: Path, read: Callable[[Path], T]) -> None:
        """Raises what `read` raises: a service does not start with a bad file."""
        self._path = path
        self._read = read
        self._stamp = stamp_of([path])
        self.current = read(path)
        self.error = ""

    async def watch(self, interval_s: float = WATCH_INTERVAL_S) -> None:
        """Look whether the file changed, for ever. Cancel it to end it."""
        await keep_refreshing(self.refresh, interval_s)

    async def refresh(self) -> None:
        """Read the file again if it changed, or was bad. A bad one changes nothing but `error`, and is logged once."""
        stamp = stamp_of([self._path])
        if stamp == self._stamp and not self.error:
            return
        self._stamp = stamp  # before reading: what is written meanwhile is seen the next time
        try:
            self.current = await asyncio.to_thread(self._read, self._path)
        except SwaaError as exc:
            if str(exc) != self.error:
                self.error = str(exc)
                logger.error("the new file is not used, what was read before stays: %s", exc)
            return
        except Exception as exc:  # a bug of ours must not end the watch: a key that is revoked later would live on
            self.error = f"unexpected {type(exc).__name__}"
            logger.exception("%s cannot be read again", self._path)
            return
        self.error = ""
        logger.info("read again: %s", self._path)
