"""Hypothesis profiles, and threads.

Examples are repeatable by default; `HYPOTHESIS_PROFILE=explore` looks for new counterexamples.
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("repeatable", max_examples=300, derandomize=True, deadline=None, suppress_health_check=_QUIET)
settings.register_profile("explore", max_examples=1000, deadline=None, suppress_health_check=_QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

ALL_THREADS = torch.get_num_threads()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """One thread: on a busy machine threads that wait for each other take ten times longer."""
    torch.set_num_threads(1)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Give other folders' tests all threads back."""
    torch.set_num_threads(ALL_THREADS)
