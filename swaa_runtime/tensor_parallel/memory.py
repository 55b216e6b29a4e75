"""The KV memory of all ranks as one: states are copied out of it and into it with all their heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from swaa_runtime.kv_cache.storage import KVStorage
from swaa_runtime.tensor_parallel.orders import Fill, Place, Read, place_part, read_part
from swaa_runtime.tensor_parallel.ranks import Ranks


class SharedMemory:
    """Rank 0's view (see StateMemory): what is kept of a state does not depend on how many ranks there are."""

    def __init__(self, ranks: Ranks, part: KVStorage) -> None:
        """`part`: what rank 0 has of it."""
        self.block_size_tokens = part.block_size_tokens
        self._ranks = ranks
        self._group = ranks.group
        self._part = part

    @property
    def bytes_per_block(self) -> int:
        """Bytes of K and V together of one block, on all ranks."""
        return self._part.bytes_per_block * self._group.size

    @property
    def bytes_per_token_layer(self) -> int:
        """Bytes of K and V together of one token in one layer, on all ranks."""
        return self._part.bytes_per_token_layer * self._group.size

    def read(self, tables: Sequence[Sequence[int]], start: int, stop: int) -> torch.Tensor:
        """See StateMemory."""
        first = start // self.block_size_tokens
        blocks = np.array([table[first : -(-stop // self.block_size_tokens)] for table in tables], dtype=np.int64)
        start, stop = (at - first * self.block_size_tokens for at in (start, stop))
        self._ranks.order(Read(blocks, start, stop))
        with self._ranks.together():
            data = torch.cat(read_part(self._group, self._part, blocks, start, stop), dim=3).to("cpu")
        self._ranks.check()
        return data

    def place(self, slots: np.ndarray, data: torch.Tensor) -> None:
        """See StateMemory."""
        self._ranks.order(Place(slots, data.shape[3]))
        with self._ranks.together():
            place_part(self._group, self._part, slots, data.to(self._group.device).contiguous())

    def fill(self, blocks: Sequence[int], value: float) -> None:
        """See StateMemory."""
        self._ranks.order(Fill(tuple(blocks), value))
        self._part.fill(blocks, value)
