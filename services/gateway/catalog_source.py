"""Where the catalogue comes from while the service runs: a file that may change, read again when it does.

Requests take `current` once, when they arrive, and keep it: a catalogue never changes under a request.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from services.gateway.catalog import Catalog
from services.gateway.catalog_file import ServedModel, load_catalog
from services.reloaded import Reloaded


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


class CatalogSource(Reloaded[Catalog]):
    """A catalogue file, the table that it may name, and the last good catalogue read from both; see `Catalogs`."""

    def __init__(self, path: Path, model: ServedModel) -> None:
        """Raises what `load_catalog` raises: a service does not start with a bad catalogue."""
        self.path = path
        super().__init__("catalogue", [path], lambda: load_catalog(path, model))
