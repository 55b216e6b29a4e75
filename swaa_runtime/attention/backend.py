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


class StoredContext(Protocol):
    """The same for a decoder that stores its keys and values itself.

    Attributes:
        storage: where to.
        slots: int64 [num_layers, T], where each of the step's tokens lives in each layer; negative: nowhere.
    """

    @property
    def storage(self) -> KVStorage: ...
    @property
    def slots(self) -> torch.Tensor: ...

    def attend_stored(self, layer: int, query: torch.Tensor, scale: float) -> torch.Tensor:
        """Attend the T tokens of this step, whose K and V are stored: query [T, num_heads, head_dim] -> the same.

        The query may be a view; the result is contiguous.
        """
        ...


class StepContext(AttentionContext, StoredContext, Protocol):
    """Serves either kind of decoder."""


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
    """The context of one step: writes the step's K and V to their slots, then lets the backend attend each chunk.

    For decoders that store K and V themselves (see `StoredContext`) it does the second alone.
    """

    def __init__(
        self, storage: KVStorage, backend: AttentionBackend, chunks: Sequence[ChunkView], slots: torch.Tensor
    ) -> None:
        """`slots`: int64 [num_layers, T], where each of the step's tokens lives in each layer."""
        self.storage = storage
        self.slots = slots
        self._backend = backend
        self._chunks = chunks

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See AttentionContext.attend."""
        self.storage.write(self.slots[layer], key.transpose(0, 1), value.transpose(0, 1))
        return self._attend_chunks(layer, query, scale)

    def attend_stored(self, layer: int, query: torch.Tensor, scale: float) -> torch.Tensor:
        """See StoredContext.attend_stored."""
        return self._attend_chunks(layer, query.transpose(0, 1), scale).contiguous()

    def _attend_chunks(self, layer: int, query: torch.Tensor, scale: float) -> torch.Tensor:
        outs = []
        for chunk in self._chunks:
            rows = query[:, chunk.row : chunk.row + chunk.stop - chunk.start]
            outs.append(self._backend.attend_chunk(self.storage, chunk, layer, rows, scale))
        return outs[0] if len(outs) == 1 else torch.cat(outs)
