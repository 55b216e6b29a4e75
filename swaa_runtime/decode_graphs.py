"""Steps in which every request decodes one token, as CUDA graphs: one launch instead of hundreds.

What differs from step to step is data in buffers that the graphs read:

    inputs   token id and position of each row         one copy a step
    tables   each row's block ids, all layers          a column when a row enters its next block
    rules    each row's window and sinks by layer      when a row changes hands

A row belongs to one request from one step to the next. Rows in use need not be adjacent; one without a position reads
nothing and stores nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from swaa_runtime.attention.backend import ChunkView
from swaa_runtime.attention.paged_triton import UNEVEN_PROGRAMS, num_splits, tile_rule
from swaa_runtime.batch import Batch
from swaa_runtime.cuda_graph import record
from swaa_runtime.kernels import skinny
from swaa_runtime.kernels.paged_attention import Launch, Tiles, paged_attention
from swaa_runtime.kv_cache.storage import KVStorage
from swaa_runtime.model.fused import FusedDecoder
from swaa_runtime.recipe import LayerRule
from swaa_runtime.shape import ModelShape
from swaa_runtime.upload import upload

NO_POSITION = -1


@dataclass(frozen=True, slots=True)
class _Row:
    """Whose row it is, and how many of its blocks are in the row's tables.

    A request's block tables are its own lists, which only grow while it decodes: what is freed of them nobody reads.
    """

    block_tables: Sequence[Sequence[int]]
    rules: Sequence[LayerRule]
    num_blocks: int


@dataclass(frozen=True, slots=True)
class _GraphContext:
    """See StoredContext: the attention of rows [0, n), each one query."""

    storage: KVStorage
    slots: torch.Tensor
    tiles: torch.Tensor
    rules: torch.Tensor
    offsets: torch.Tensor
    table: torch.Tensor
    splits: int
    rows: torch.Tensor

    def attend_stored(self, layer: int, query: torch.Tensor, scale: float) -> torch.Tensor:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        tiles = Tiles(self.tiles, self.rules[layer], 1, self.splits, self.rows)
        launch = Launch(tiles, self.offsets[layer], self.table)
        paged_attention(query, self.storage.keys, self.storage.values, launch, scale, out, self.storage.scales)
        return out


class DecodeGraphs:
    """Runs decoding steps. Without CUDA the same function runs as it is: that is what the graphs are tested by."""

    def __init__(
        self,
        decoder: FusedDecoder,
        lm_head: torch.nn.Linear,
        storage: KVStorage,
        shape: ModelShape,
        max_rows: int,
        max_tokens: int,
    ) -> None:
        """`max_rows`: requests that decode at a time; `max_tokens`: the longest sequence."""
        self._decoder = decoder
        self._lm_head = lm_head
        self._storage = storage
        self._shape = shape
        self._device = storage.keys.device
        self._max_tokens = max_tokens
        self._rows: list[_Row | None] = [None] * max_rows
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        num_layers = shape.num_layers
        max_blocks = -(-max_tokens // storage.block_size_tokens)
        pinned = self._device.type == "cuda"
        self._host_inputs = torch.zeros((2, max_rows), dtype=torch.int64, pin_memory=pinned)
        self._inputs = torch.zeros((2, max_rows), dtype=torch.int64, device=self._device)
        self._inputs[1] = NO_POSITION
        self._tables = torch.zeros((num_layers, max_rows, max_blocks), dtype=torch.int32, device=self._device)
        self._rules = torch.ones((num_layers, max_rows, 2), dtype=torch.int32, device=self._device)
        starts = torch.arange(num_layers * max_rows, device=self._device).view(num_layers, max_rows, 1) * max_blocks
        self._offsets = starts.expand(-1, -1, 2).contiguous()
        self._arange = torch.arange(max_rows, device=self._device)

    def capture_all(self) -> None:
        """Capture what else the first steps of each size would have to wait for."""
        sizes = {bucket(num_rows, len(self._rows)) for num_rows in range(1, len(self._rows) + 1)}
        for num_rows in sorted(sizes, reverse=True):  # the largest first: the others fit into its memory
            self._replay(num_rows)

    def takes(self, batch: Batch) -> bool:
        """Whether the batch only decodes, without adapters, and there is room for it."""
        if not batch.only_decodes or batch.adapter_ranges or len(batch.chunks) > len(self._rows):
            return False
        return all(chunk.stop <= self._max_tokens for chunk in batch.chunks)

    def run(self, batch: Batch) -> torch.Tensor:
        """Float32 logits [n, vocab_size] of the batch's requests; their K and V are stored."""
        num_rows = bucket(len(batch.chunks), len(self._rows))
        rows = self._assign(batch.chunks, num_rows)
        host = self._host_inputs
        host[1].fill_(NO_POSITION)
        host[0, rows] = torch.from_numpy(batch.token_ids)
        host[1, rows] = torch.from_numpy(batch.positions)
        self._inputs.copy_(host, non_blocking=True)
        return self._logits(num_rows, self._index(rows))

    def run_next(self, batch: Batch, token_ids: torch.Tensor) -> torch.Tensor:
        """What `run` will return for the step after `batch`, which ran last; the host need not know its tokens.

        Args:
            token_ids: int64 [n] on the device, what was drawn after `batch`; negative: whatever, nobody will ask.
        """
        num_rows = bucket(len(batch.chunks), len(self._rows))
        chunks = [replace(chunk, start=chunk.start + 1, stop=chunk.stop + 1) for chunk in batch.chunks]
        index = self._index(self._assign(chunks, num_rows))
        self._inputs[0, index] = token_ids.clamp(min=0)
        self._inputs[1, index] += 1
        return self._logits(num_rows, index)

    def _index(self, rows: list[int]) -> slice | torch.Tensor:
        """The rows as an index on the device."""
        if rows == list(range(len(rows))):
            return slice(0, len(rows))
        return upload(np.array(rows), self._device)

    def _logits(self, num_rows: int, index: slice | torch.Tensor) -> torch.Tensor:
        """Run a step of `num_rows`: those of `index`, in memory of their own, as the next step overwrites a graph's."""
        return self._replay(num_rows)[index].to(torch.float32, copy=True)

    def _replay(self, num_rows: int) -> torch.Tensor:
        if self._device.type != "cuda":
            return self._forward(num_rows)
        if num_rows not in self._graphs:
            self._graphs[num_rows] = self._capture(num_rows)
        graph, logits = self._graphs[num_rows]
        graph.replay()
        return logits

    def _capture(self, num_rows: int) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        """Record the step for rows [0, num_rows). It runs once before, on no row, so that kernels are compiled."""
        kept = self._inputs.clone()
        self._inputs[1] = NO_POSITION
        self._forward(num_rows)
        torch.cuda.synchronize(self._device)
        graph, logits = record(lambda: self._forward(num_rows), [other for other, _ in self._graphs.values()])
        self._inputs.copy_(kept)
        return graph, logits

    def _forward(self, num_rows: int) -> torch.Tensor:
        """Logits of rows [0, num_rows): all shapes follow from that number, all else is read from the buffers."""
        token_ids, positions = self._inputs[0, :num_rows], self._inputs[1, :num_rows]
        present = positions >= 0
        positions = positions.clamp(min=0)
        rows = self._arange[:num_rows]
        size = self._storage.block_size_tokens
        block = self._tables[:, rows, positions // size].long()
        slots = torch.where(present, block * size + positions % size, -1)
        tiles = torch.stack([rows, present.long(), positions, rows, rows], dim=1).int()
        splits = num_splits(num_rows * self._shape.num_kv_heads, self._device, UNEVEN_PROGRAMS)
        rules = self._rules[:, :num_rows].contiguous()
        context = _GraphContext(self._storage, slots, tiles, rules, self._offsets, self._tables, splits, rows)
        hidden = self._decoder.forward(token_ids, positions, context)
        return skinny.linear(hidden, self._lm_head.weight, self._lm_head.bias)

    def _assign(self, chunks: Sequence[ChunkView], num_rows: int) -> list[int]:
        """The row of each chunk: its own, if that is among the first `num_rows`, else one that is nobody's.

        Rows of requests that are not in this step are nobody's from now on.
        """
        # Rows keep their owners' tables alive, so no other list can have the same id.
        owned = {id(row.block_tables): at for at, row in enumerate(self._rows[:num_rows]) if row is not None}
        own = [owned.get(id(chunk.block_tables)) for chunk in chunks]
        free = iter(sorted(set(range(num_rows)) - set(own)))
        indices = [next(free) if index is None else index for index in own]
        rows: list[_Row | None] = [None] * len(self._rows)
        for index, chunk in zip(indices, chunks, strict=True):
            rows[index] = self._update(index, chunk)
        self._rows = rows
        return indices

    def _update(self, index: int, chunk: ChunkView) -> _Row:
        """Write what the graphs read of a request and a row does not have yet."""
        row = self._rows[index]
        written = 0
        if row is not None and row.block_tables is chunk.block_tables and row.rules is chunk.rules:
            written = row.num_blocks
        else:
            rules = [tile_rule(rule, sees_all=rule.full_decode) for rule in chunk.rules]
            self._rules[:, index] = upload(np.array(rules, dtype=np.int32), self._device)
        num_blocks = -(-chunk.stop // self._storage.block_size_tokens)
        if written < num_blocks:
            ids = np.array([table[written:num_blocks] for table in chunk.block_tables], dtype=np.int32)
            self._tables[:, index, written:num_blocks] = upload(ids, self._device)
        return _Row(chunk.block_tables, chunk.rules, num_blocks)


def bucket(num_rows: int, max_rows: int) -> int:
    """For how many rows a step of so many is run: the next power of two, so that there are few graphs."""
    return min(max_rows, 1 << (num_rows - 1).bit_length())
