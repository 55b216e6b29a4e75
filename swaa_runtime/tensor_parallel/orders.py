"""What rank 0 has the other ranks do. Each order is plain data and does its work on the rank that gets it.

An order is pickled, by multiprocessing, into a pipe between a process and its own child: a pair of sockets without an
address, that nobody else can open. What comes from clients is in it as numbers only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from swaa_runtime.config import EngineConfig
from swaa_runtime.errors import IntegrityError
from swaa_runtime.group import Group
from swaa_runtime.kv_cache.storage import KVStorage
from swaa_runtime.model.loader import LoadedModel
from swaa_runtime.runner import ModelRunner
from swaa_runtime.tensor_parallel.batches import BatchListener, ToldBatch


@dataclass(slots=True)
class Rank:
    """What a rank other than the first has to work with."""

    group: Group
    loaded: LoadedModel
    batches: BatchListener = field(default_factory=BatchListener)
    built: ModelRunner | None = None

    @property
    def runner(self) -> ModelRunner:
        """The runner that was built last."""
        if self.built is None:
            raise IntegrityError("a rank is ordered to work before its runner is built")
        return self.built


class Order(Protocol):
    """Something to do on a rank; what it does with the group, rank 0 does too."""

    def obey(self, rank: Rank) -> None: ...


@dataclass(frozen=True, slots=True)
class Build:
    """A runner, with its KV memory."""

    config: EngineConfig
    runner: type[ModelRunner]

    def obey(self, rank: Rank) -> None:
        """In place of the one there is, whose memory is free first."""
        rank.built = None
        rank.built = self.runner(rank.loaded, self.config)
        rank.batches = BatchListener()


@dataclass(frozen=True, slots=True)
class WarmUp:
    """See ModelRunner.warm_up."""

    def obey(self, rank: Rank) -> None:
        """On this rank."""
        rank.runner.warm_up()


@dataclass(frozen=True, slots=True)
class Run:
    """See ModelRunner.run."""

    batch: ToldBatch

    def obey(self, rank: Rank) -> None:
        """The logits are those of rank 0 too."""
        rank.runner.run(rank.batches.batch(self.batch))


@dataclass(frozen=True, slots=True)
class Read:
    """See StateMemory.read; `blocks`: int64 [len(tables), n], those of the tokens, which begin `start` after them."""

    blocks: np.ndarray
    start: int
    stop: int

    def obey(self, rank: Rank) -> None:
        """Give this rank's heads."""
        read_part(rank.group, rank.runner.part, self.blocks, self.start, self.stop)


@dataclass(frozen=True, slots=True)
class Place:
    """See StateMemory.place; `num_kv_heads` are those of all ranks."""

    slots: np.ndarray
    num_kv_heads: int

    def obey(self, rank: Rank) -> None:
        """Take this rank's heads."""
        part = rank.runner.part
        shape = (len(self.slots), 2, self.slots.shape[1], self.num_kv_heads, part.keys.shape[-1])
        place_part(rank.group, part, self.slots, torch.empty(shape, dtype=part.dtype, device=part.keys.device))


@dataclass(frozen=True, slots=True)
class Fill:
    """See StateMemory.fill."""

    blocks: tuple[int, ...]
    value: float

    def obey(self, rank: Rank) -> None:
        """On this rank."""
        rank.runner.part.fill(self.blocks, self.value)


def read_part(group: Group, storage: KVStorage, blocks: np.ndarray, start: int, stop: int) -> list[torch.Tensor]:
    """Every rank's heads of tokens [start, stop) of the blocks: each [layers, 2, stop - start, heads, head_dim]."""
    return group.all_parts(storage.stacked(blocks.tolist(), start, stop).contiguous())


def place_part(group: Group, storage: KVStorage, slots: np.ndarray, data: torch.Tensor) -> None:
    """Store this rank's heads of what rank 0 has, [layers, 2, n, all heads, head_dim], where the storage is."""
    whole = group.from_first(data)
    storage.place(slots, whole.chunk(group.size, dim=3)[group.rank])
