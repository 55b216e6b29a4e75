"""Where the catalogue comes from while the service runs: a file that may change, read again when it does.

Requests take `current` once, when they arrive, and keep it: a catalogue never changes under a request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from services.file_stamp import WATCH_INTERVAL_S, keep_refreshing, stamp_of
from services.gateway.catalog import Catalog
from services.gateway.catalog_file import ServedModel, load_catalog
from swaa_runtime.errors import SwaaError

logger = logging.getLogger(__name__)


class Catalogs(Protocol):
    """The catalogue as it is now, and where it comes from.

    Attributes:
        path: the file.
        current: what requests that arrive now are planned by.
        loaded_at_s: when it was read, in seconds since 1970.
        error: why what is in the file now is not used; empty if it is.
    """

    @property
    def path(self) -> Path: ...

    @property
    def current(self) -> Catalog: ...

    @property
    def loaded_at_s(self) -> float: ...

    @property
    def error(self) -> str: ...


@dataclass(frozen=True, slots=True)
class FixedCatalog:
    """A catalogue that never changes, from no file: for tests."""

    current: Catalog
    path: Path = Path("none")
    loaded_at_s: float = 0.0
    error: str = ""


class CatalogSource:
    """A catalogue file, and the last good catalogue read from it; see `Catalogs`. Belongs to one event loop."""

    def __init__(self, path: Path, model: ServedModel) -> None:
        """Raises what `load_catalog` raises: a service does not start with a bad catalogue."""
        self.path = path
        self.error = ""
        self._model = model
        self._files: tuple[Path, ...] = (path,)
        stamp = stamp_of(self._files)
        self.current, self._files = load_catalog(path, model)
        self._stamp = stamp + stamp_of(self._files[1:])
        self.loaded_at_s = time.time()

    async def watch(self, interval_s: float = WATCH_INTERVAL_S) -> None:
        """Look whether the files changed, for ever. Cancel it to end it."""
        await keep_refreshing(self.refresh, interval_s)

    async def refresh(self) -> None:
        """Read the files again if they changed, or were bad: what was missing may have come.

        A bad file changes nothing but `error`, and is logged once.
        """
        stamp = stamp_of(self._files)
        if stamp == self._stamp and not self.error:
            return
        self._stamp = stamp  # before reading: what is written meanwhile is seen the next time
        try:
            catalog, files = await asyncio.to_thread(load_catalog, self.path, self._model)
        except SwaaError as exc:
            if str(exc) != self.error:
                self.error = str(exc)
                logger.error("the new catalogue is not used, the old one stays: %s", exc)
            return
        if files != self._files:
            self._files, self._stamp = files, stamp[:1] + stamp_of(files[1:])
        self.current, self.loaded_at_s, self.error = catalog, time.time(), ""
        logger.info("catalogue read again: %d recipes, %d SLA classes", len(catalog.recipes), len(catalog.sla_classes))
