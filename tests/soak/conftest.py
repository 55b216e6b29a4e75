"""A tiny model for tests of the soak's own parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.workload import make_tiny_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, default_model_folder: Path) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), default_model_folder)
