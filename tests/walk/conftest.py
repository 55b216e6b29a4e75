"""One running service for all tests of this folder that leave it as it was."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.workload import make_tiny_model

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


@pytest.fixture(scope="session")
def tiny(walk_folder: Path, default_model_folder: Path) -> Iterator[Service]:
    """A service of a tiny random model, with little memory: for what does not depend on the answer's sense."""
    folder = walk_folder / "tiny"
    folder.mkdir()
    model = make_tiny_model(folder, default_model_folder)
    with Service(folder, model=str(model), dtype="float32", kv_memory_mib="16", cache_dir=str(folder)) as service:
        yield service
        assert service.stop() == 0
