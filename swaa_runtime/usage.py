"""What an engine's memory is used for and how many requests it has, counted when somebody asks. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from swaa_runtime.kv_cache.block_pool import NULL_BLOCK, BlockPool
from swaa_runtime.recipe import LayerRule
from swaa_runtime.request import Request, Status

BlockUse = Literal["full", "lookback", "window", "saving", "parked", "free"]
"""Of layers that are full; that slide, and look back; that only slide. Of states that are being saved, or parked."""


@dataclass(frozen=True, slots=True)
class EngineUsage:
    """Counts of one moment.

    Attributes:
        num_blocks: of KV memory, by use; together they are the pool.
        block_bytes: of each of them.
        prefill_ms: predicted time of all prefill there is.
        num_preemptions: since the start.
        swapped_bytes: of states in host memory.
    """

    num_running: int
    num_waiting: int
    num_blocks: Mapping[BlockUse, int]
    block_bytes: int
    prefill_ms: float
    num_preemptions: int
    swapped_bytes: int


def count_blocks(pool: BlockPool, requests: Iterable[Request], parked: Iterable[Request]) -> dict[BlockUse, int]:
    """Who holds the blocks of a pool: live requests, by kind of layer; parked states; else, ended ones being saved."""
    count: Counter[BlockUse] = Counter({"full": 0, "lookback": 0, "window": 0})
    for request in requests:
        for rule, table in zip(request.rules, request.block_tables, strict=False):  # no tables yet while it waits
            count[layer_kind(rule)] += len(table) - table.count(NULL_BLOCK)
    count["parked"] = sum(request.num_held_blocks for request in parked)
    count["saving"] = pool.num_used_blocks - count.total()
    count["free"] = pool.num_free_blocks
    return dict(count)


def count_running(requests: Iterable[Request]) -> tuple[int, int]:
    """Requests that run, and that wait or make room."""
    running = [request.status is Status.RUNNING for request in requests]
    return sum(running), len(running) - sum(running)


def layer_kind(rule: LayerRule) -> Literal["full", "lookback", "window"]:
    """What a layer keeps of a prompt: everything always; everything while something may look back; its window."""
    if rule.window is None:
        return "full"
    return "lookback" if rule.looks_back else "window"
