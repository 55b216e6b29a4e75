"""The slow, obviously right twin of `windowed`: gathers the whole sequence and asks the oracle."""

from __future__ import annotations

import torch

from swaa_runtime.attention.backend import ChunkView
from swaa_runtime.attention.oracle import oracle_attention
from swaa_runtime.kv_cache.storage import KVStorage


class ReferenceBackend:
    """Dense masked attention, quadratic in the sequence. Freed blocks read as zeros and are masked."""

    name = "reference"

    def attend_chunk(
        self, storage: KVStorage, chunk: ChunkView, layer: int, query: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See AttentionBackend.attend_chunk."""
        key, value = storage.gather(chunk.block_tables[layer], 0, chunk.stop)
        return oracle_attention(
            query, key.transpose(0, 1), value.transpose(0, 1), chunk.rules[layer], chunk.turns, chunk.start, scale
        )
