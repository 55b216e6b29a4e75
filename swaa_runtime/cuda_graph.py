"""Recording what is asked of a GPU, so that it can be asked again by one launch."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def record(run: Callable[[], T], others: Sequence[torch.cuda.CUDAGraph] = ()) -> tuple[torch.cuda.CUDAGraph, T]:
    """What `run` asks for, as a graph, and what it returned: tensors that each replay writes again.

    All that it needs compiled must be so. What other threads do on the device is not recorded.

    Args:
        others: graphs that never run at the same time: they share memory.
    """
    graph = torch.cuda.CUDAGraph()
    pool: Any = others[0].pool() if others else None
    with _uncollected(), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = run()
    return graph, result


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's collector: what it happens to free, another engine's graphs say, would end the recording."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
