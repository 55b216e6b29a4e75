"""Steps in which every request decodes one token, as CUDA graphs: one launch instead of hundreds.

What differs from step to step is data in buffers that the graphs read:

    inputs   token id and position of each row         one copy a step
    tables   each row's block ids, all layers          a column when a row enters its next block
    rules    each row's window and sinks by layer      when a row changes hands

A row belongs to one request as long as that decodes. Rows in use need not be adjacent; one without a position reads
nothing and stores nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from swaa_runtime.attention.backend import ChunkView
from swaa_runtime.attention.paged_triton import num_splits
from swaa_runtime.batch import Batch
from swaa_runtime.kernels import skinny
from swaa_runtime.kernels.paged_attention import SEES_ALL, Tiles, paged_attention
from swaa_runtime.kv_cache.storage import KVStorage
from swaa_runtime.model.decoder import Decoder
from swaa_runtime.recipe import LayerRule
from swaa_runtime.shape import ModelShape

NO_POSITION = -1


@dataclass(slots=True)
class _Row:
    """Whose row it is (a request's block tables are its own), and the position that its next step computes."""

    block_tables: Sequence[Sequence[int]]
    rules: Sequence[LayerRule]
    next_position: int


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

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        raise NotImplementedError("graphs are made of decoders that store their own K and V")

    def attend_stored(self, layer: int, query: torch.Tensor, scale: float) -> torch.Tensor:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        work = Tiles(self.tiles, self.rules[layer], self.offsets[layer], self.table, 1, self.splits, self.rows)
        paged_attention(query, self.storage.keys, self.storage.values, work, scale, out)
        return out


class DecodeGraphs:
    """Runs decoding steps. Without CUDA the same function runs as it is: that is what the graphs are tested by."""

    def __init__(
        self,
        decoder: Decoder,
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

    def takes(self, batch: Batch) -> bool:
        """Whether the batch only decodes, without adapters."""
        return batch.only_decodes and not batch.adapter_ranges and len(batch.chunks) <= len(self._rows)

    def run(self, batch: Batch) -> torch.Tensor:
        """Float32 logits [n, vocab_size] of the batch's requests; their K and V are stored."""
        rows = self._assign(batch.chunks)
        host = self._host_inputs
        host[1].fill_(NO_POSITION)
        index = torch.tensor(rows)
        host[0, index] = torch.from_numpy(batch.token_ids)
        host[1, index] = torch.from_numpy(batch.positions)
        self._inputs.copy_(host, non_blocking=True)
        logits = self._replay(bucket(max(rows) + 1, len(self._rows)))
        chosen = logits[: len(rows)] if rows == list(range(len(rows))) else logits[index.to(self._device)]
        return chosen.float()

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
        graph = torch.cuda.CUDAGraph()
        pool: Any = next((other.pool() for other, _ in self._graphs.values()), None)
        with torch.cuda.graph(graph, pool=pool):  # they run one at a time, so they share memory
            logits = self._forward(num_rows)
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
        splits = num_splits(num_rows * self._shape.num_kv_heads, self._device)
        rules = self._rules[:, :num_rows].contiguous()
        context = _GraphContext(self._storage, slots, tiles, rules, self._offsets, self._tables, splits, rows)
        hidden = self._decoder.forward(token_ids, positions, context)
        return skinny.linear(hidden, self._lm_head.weight, self._lm_head.bias)

    def _assign(self, chunks: Sequence[ChunkView]) -> list[int]:
        """The row of each chunk: its own if it has one, else one that nobody has used in this step."""
        owners = {id(row.block_tables): index for index, row in enumerate(self._rows) if row is not None}
        taken = [owners.get(id(chunk.block_tables)) for chunk in chunks]
        free = iter(sorted(set(range(len(self._rows))) - {row for row in taken if row is not None}))
        rows = []
        for chunk, index in zip(chunks, taken, strict=True):
            row = self._rows[index] if index is not None else None
            if index is None:
                index = next(free)
            if row is None or row.next_position != chunk.start or row.rules is not chunk.rules:
                self._enter(index, chunk)
            elif chunk.start % self._storage.block_size_tokens == 0:
                self._next_block(index, chunk)
            self._rows[index] = _Row(chunk.block_tables, chunk.rules, chunk.stop)
            rows.append(index)
        return rows

    def _enter(self, index: int, chunk: ChunkView) -> None:
        """Write all that the graphs read of a request to a row."""
        tables = torch.from_numpy(np.array(chunk.block_tables, dtype=np.int32))
        self._tables[:, index, : tables.shape[1]] = tables.to(self._device)
        rules = [(SEES_ALL, 0) if _sees_all(rule) else (rule.window, rule.sink_tokens) for rule in chunk.rules]
        self._rules[:, index] = torch.tensor(rules, dtype=torch.int32).to(self._device)

    def _next_block(self, index: int, chunk: ChunkView) -> None:
        block = chunk.start // self._storage.block_size_tokens
        ids = torch.tensor([table[block] for table in chunk.block_tables], dtype=torch.int32)
        self._tables[:, index, block] = ids.to(self._device)


def _sees_all(rule: LayerRule) -> bool:
    """Whether a generated token sees everything in such a layer."""
    return rule.window is None or rule.full_decode


def bucket(num_rows: int, max_rows: int) -> int:
    """For how many rows a step of so many is run: the next power of two, so that there are few graphs."""
    return min(max_rows, 1 << (num_rows - 1).bit_length())
