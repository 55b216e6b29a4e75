"""The ranks that these tests share: they take seconds to start."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

import pytest

from swaa_runtime.errors import EngineFailed
from swaa_runtime.tensor_parallel.ranks import Ranks
from tests.swaa_runtime.tensor_parallel.builders import load_tiny, start_ranks


@pytest.fixture(scope="session")
def started() -> Iterator[list[Ranks]]:
    """The last of them is in use."""
    all_ranks: list[Ranks] = []
    yield all_ranks
    for ranks in all_ranks:
        ranks.close()


@pytest.fixture
def ranks(started: list[Ranks]) -> Ranks:
    """Two, of which a test says which model they have (see `serve`). A test that kills one should be the last."""
    for ranks in started[-1:]:
        with contextlib.suppress(EngineFailed):
            ranks.check()
            return ranks
    started.append(start_ranks(partial(load_tiny, "llama")))
    return started[-1]
