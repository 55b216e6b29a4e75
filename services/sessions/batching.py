"""Many segments in few round trips, each of bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def batched_by_bytes(sized: Iterable[tuple[T, int]], max_bytes: int) -> Iterator[list[T]]:
    """Consecutive items of at most `max_bytes` together, but at least one; `sized` has each with its bytes."""
    batch: list[T] = []
    total = 0
    for item, num_bytes in sized:
        if batch and total + num_bytes > max_bytes:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += num_bytes
    if batch:
        yield batch
