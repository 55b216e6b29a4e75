"""One running service for all tests of this folder that leave it as it was."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Service


@pytest.fixture(scope="session")
def walk_folder() -> Iterator[Path]:
    """A folder with a path short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="swaa-walk-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def service(walk_folder: Path) -> Iterator[Service]:
    """The service with its default settings."""
    folder = walk_folder / "shared"
    folder.mkdir()
    with Service(folder) as service:
        yield service
        assert service.stop() == 0
