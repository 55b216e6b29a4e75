"""The tensors behind the block ids. Knows nothing of requests or recipes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from swaa_runtime.config import KVDtypeName
from swaa_runtime.kv_cache.block_pool import NULL_BLOCK
from swaa_runtime.kv_cache.quantise import DTYPES, dequantise, quantise


class StateMemory(Protocol):
    """What states are copied out of and into: `KVStorage`, or that of several ranks as one."""

    block_size_tokens: int

    @property
    def bytes_per_block(self) -> int: ...
    @property
    def bytes_per_token_layer(self) -> int: ...

    def read(self, tables: Sequence[Sequence[int]], start: int, stop: int) -> torch.Tensor:
        """K and V of tokens [start, stop) by some layers' tables.

        Returns:
            [len(tables), 2 (K, V), stop - start, num_kv_heads, head_dim], on the CPU.
        """
        ...

    def place(self, slots: np.ndarray, data: torch.Tensor) -> None:
        """Store such data, [num_layers, 2, n, num_kv_heads, head_dim], at flat token slots, int64 [num_layers, n]."""
        ...

    def fill(self, blocks: Sequence[int], value: float) -> None:
        """Overwrite whole blocks: with zeros before a restore, with NaN to prove that nobody reads a freed block."""
        ...


class KVStorage:
    """K and V of all blocks, each [num_blocks, block_size_tokens, num_kv_heads, head_dim].

    Keys are stored after RoPE at absolute positions: nothing is ever rotated again or moved. What is written and read
    is of the model's dtype; what is kept may be of 8 bits (see `quantise`).

    Attributes:
        keys, values: what is kept.
        scales: of keys and values, float32 [num_blocks, num_kv_heads, block_size_tokens]; None if they need none.
        dtype: the model's.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size_tokens: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        kv_dtype: KVDtypeName = "model",
    ) -> None:
        shape = (num_blocks, block_size_tokens, num_kv_heads, head_dim)
        self.block_size_tokens = block_size_tokens
        self.dtype = dtype
        kept = DTYPES[kv_dtype]
        self.keys = torch.zeros(shape, dtype=kept or dtype, device=device)
        self.values = torch.zeros(shape, dtype=kept or dtype, device=device)
        self.scales: tuple[torch.Tensor, torch.Tensor] | None = None
        if kept is not None:
            of_heads = (num_blocks, num_kv_heads, block_size_tokens)
            self.scales = torch.zeros(of_heads, device=device), torch.zeros(of_heads, device=device)

    @property
    def bytes_per_block(self) -> int:
        """Bytes of memory that a block takes, K and V together."""
        return 2 * self.keys[0].nbytes + sum(scales[0].nbytes for scales in self.scales or ())

    @property
    def bytes_per_token_layer(self) -> int:
        """Bytes of K and V together of one token in one layer, as they are read: of the model's dtype."""
        return 2 * self.keys[0, 0].numel() * self.dtype.itemsize

    def write(self, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store rows [n, num_kv_heads, head_dim] at flat token slots (block id * block size + offset), int64 [n]."""
        if self.scales is None:
            self.keys.flatten(0, 1).index_copy_(0, slots, keys)
            self.values.flatten(0, 1).index_copy_(0, slots, values)
            return
        blocks, offsets = slots // self.block_size_tokens, slots % self.block_size_tokens
        for rows, kept, scales in zip((keys, values), (self.keys, self.values), self.scales, strict=True):
            low, of_rows = quantise(rows, kept.dtype)
            _bytes(kept).flatten(0, 1).index_copy_(0, slots, _bytes(low))
            scales[blocks, :, offsets] = of_rows

    def clear(self, slots: torch.Tensor) -> None:
        """Store zeros at flat token slots, int64 [n]."""
        if self.scales is None:
            self.keys.flatten(0, 1).index_fill_(0, slots, 0.0)
            self.values.flatten(0, 1).index_fill_(0, slots, 0.0)
            return
        for scales in self.scales:
            scales[slots // self.block_size_tokens, :, slots % self.block_size_tokens] = 0.0

    def gather(self, block_table: Sequence[int], start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of tokens [start, stop), each [stop - start, num_kv_heads, head_dim].

        Freed blocks read as the zeros of the null block. The result is a view of the storage where the blocks are
        consecutive and kept as they are, else a copy: valid until the next `write`, never to be written to.
        """
        size = self.block_size_tokens
        first = start // size
        ids = np.asarray(block_table[first : -(-stop // size)], dtype=np.int64)
        low, high = start - first * size, stop - first * size
        is_one_run = len(ids) == 1 or (ids[0] != NULL_BLOCK and bool((np.diff(ids) == 1).all()))
        if is_one_run and self.scales is None:
            low, high = low + int(ids[0]) * size, high + int(ids[0]) * size
            return self.keys.flatten(0, 1)[low:high], self.values.flatten(0, 1)[low:high]
        keys, values = self.gather_blocks(torch.from_numpy(ids).to(self.keys.device))
        return keys[low:high], values[low:high]

    def gather_blocks(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of K and V of whole blocks, int ids [n]: each [n * block_size_tokens, num_kv_heads, head_dim]."""
        keys, values = (_bytes(kept).index_select(0, blocks).view(kept.dtype) for kept in (self.keys, self.values))
        if self.scales is not None:
            key_scales, value_scales = (scales.index_select(0, blocks).transpose(1, 2) for scales in self.scales)
            keys, values = dequantise(keys, key_scales, self.dtype), dequantise(values, value_scales, self.dtype)
        return keys.flatten(0, 1), values.flatten(0, 1)

    def read(self, tables: Sequence[Sequence[int]], start: int, stop: int) -> torch.Tensor:
        """See StateMemory."""
        return self.stacked(tables, start, stop).to("cpu")

    def stacked(self, tables: Sequence[Sequence[int]], start: int, stop: int) -> torch.Tensor:
        """The same, where the storage is."""
        return torch.stack([torch.stack(self.gather(table, start, stop)) for table in tables])

    def place(self, slots: np.ndarray, data: torch.Tensor) -> None:
        """See StateMemory."""
        index = torch.from_numpy(slots).to(self.keys.device)
        for at, (keys, values) in zip(index, data.to(self.keys.device), strict=True):
            self.write(at, keys, values)

    def fill(self, blocks: Sequence[int], value: float) -> None:
        """See StateMemory."""
        index = torch.tensor(blocks, dtype=torch.int64, device=self.keys.device)
        filled = (self.keys, self.values)
        if self.scales is not None:  # 8 bits have no room for NaN: the scales say what ones are worth
            for kept in filled:
                _bytes(kept).index_fill_(0, index, int(_bytes(torch.ones(1, dtype=kept.dtype))))
            filled = self.scales
        for tensor in filled:
            tensor.index_fill_(0, index, value)


def slot_ids(block_table: Sequence[int], start: int, stop: int, block_size_tokens: int) -> np.ndarray:
    """Flat token slots of positions [start, stop) in one layer, int64 [stop - start]."""
    positions = np.arange(start, stop)
    first = start // block_size_tokens
    ids = np.asarray(block_table[first : -(-stop // block_size_tokens)], dtype=np.int64)
    slots: np.ndarray = ids[positions // block_size_tokens - first] * block_size_tokens + positions % block_size_tokens
    return slots


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """What of 8 bits is no integer, as integers: torch moves those, but not every float8."""
    return tensor.view(torch.uint8) if tensor.dtype is torch.float8_e4m3fn else tensor
