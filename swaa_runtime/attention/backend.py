"""The interface between the model and KV memory, and the context of one step that is passed through the model.

The context is an explicit argument of every forward pass: no global carries it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from swaa_runtime.kv_cache.storage import KVStorage
from swaa_runtime.recipe import LayerRule
from swaa_runtime.visibility import Turn


class AttentionContext(Protocol):
    """What the registered attention function calls, once per layer of a forward pass."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attend the T tokens of this step.

        Args:
            query: [num_heads, T, head_dim]; key, value: [num_kv_heads, T, head_dim], after RoPE.

        Returns:
            [T, num_heads, head_dim], in the query's dtype.
        """
        ...


@dataclass(frozen=True, slots=True)
class ChunkView:
    """One request's part of a step: positions [start, stop), which are rows [row, row + stop - start) of the step."""

    row: int
    start: int
    stop: int
    rules: Sequence[LayerRule]
    turns: Sequence[Turn]
    block_tables: Sequence[Sequence[int]]


class AttentionBackend(Protocol):
    """Attention of one chunk in one layer. Its own K and V are in `storage` already."""

    name: str

    def attend_chunk(
        self, storage: KVStorage, chunk: ChunkView, layer: int, query: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Queries [num_heads, C, head_dim] of the chunk's positions; returns [C, num_heads, head_dim]."""
        ...


class PagedContext:
    """The context of one step: writes the step's K and V to their slots, then lets the backend attend each chunk."""

    def __init__(
        self, storage: KVStorage, backend: AttentionBackend, chunks: Sequence[ChunkView], slots: torch.Tensor
    ) -> None:
        """`slots`: int64 [num_layers, T], where each of the step's tokens lives in each layer."""
        self._storage = storage
        self._backend = backend
        self._chunks = chunks
        self._slots = slots

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See AttentionContext.attend."""
        self._storage.write(self._slots[layer], key.transpose(0, 1), value.transpose(0, 1))
        outs = []
        for chunk in self._chunks:
            rows = query[:, chunk.row : chunk.row + chunk.stop - chunk.start]
            outs.append(self._backend.attend_chunk(self._storage, chunk, layer, rows, scale))
        return outs[0] if len(outs) == 1 else torch.cat(outs)
