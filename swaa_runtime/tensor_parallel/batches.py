"""Batches as rank 0 tells them to the other ranks: of a request's block tables, only what they have not been told.

Tables grow at their end, and blocks that nobody sees any more become null. While a request computes on where it
stopped, what was told of it before stays right (freed blocks aside, which are not read): only new blocks are told. In
any other case, as after a restored state, all of it is told anew.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, MutableSequence, Sequence
from dataclasses import dataclass

import numpy as np

from swaa_runtime.attention.backend import ChunkView
from swaa_runtime.batch import Batch
from swaa_runtime.recipe import LayerRule
from swaa_runtime.request import Request
from swaa_runtime.visibility import Turn


@dataclass(frozen=True, slots=True)
class ToldChunk:
    """A chunk (see ChunkView) of the request of that number.

    Attributes:
        first_block: where `blocks` begin in its tables; 0: they are all there is.
        blocks: int32 [num_layers, n].
        rules, turns: None: as they were.
    """

    number: int
    row: int
    start: int
    stop: int
    first_block: int
    blocks: np.ndarray
    rules: Sequence[LayerRule] | None
    turns: Sequence[Turn] | None


@dataclass(frozen=True, slots=True)
class ToldBatch:
    """A batch (see Batch), without what only the engine needs.

    Attributes:
        forgotten: numbers of requests that will not come again.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    chunks: tuple[ToldChunk, ...]
    sampled_rows: np.ndarray
    adapter_ranges: Mapping[str, Sequence[range]]
    num_layers: int
    forgotten: tuple[int, ...]


@dataclass(slots=True)
class _Told:
    """What the others know of a request. It is known by its list of tables, which is held here: its id names it."""

    number: int
    block_tables: Sequence[Sequence[int]]
    stop: int
    rules: Sequence[LayerRule]
    turns: Sequence[Turn]


class BatchTeller:
    """Rank 0's side."""

    def __init__(self, block_size_tokens: int, max_requests: int) -> None:
        """`max_requests`: so many at least are remembered; of others, all is told anew when they come again."""
        self._size = block_size_tokens
        self._max_requests = max_requests
        self._told: dict[int, _Told] = {}  # by id of the tables, the one told of longest ago first
        self._next_number = 0

    def tell(self, batch: Batch) -> ToldBatch:
        """What the others need to run the batch. Every batch must be told, in order, to all of them."""
        chunks = tuple(self._chunk(chunk) for chunk in batch.chunks)
        excess = max(0, len(self._told) - max(self._max_requests, len(chunks)))
        forgotten = tuple(self._told.pop(key).number for key in list(self._told)[:excess])
        return ToldBatch(
            batch.token_ids,
            batch.positions,
            chunks,
            batch.sampled_rows,
            batch.adapter_ranges,
            batch.num_layers,
            forgotten,
        )

    def _chunk(self, chunk: ChunkView) -> ToldChunk:
        told = self._told.pop(id(chunk.block_tables), None)
        goes_on = told is not None and told.stop == chunk.start
        first = -(-chunk.start // self._size) if goes_on else 0
        stop = -(-chunk.stop // self._size)
        blocks = np.array([table[first:stop] for table in chunk.block_tables], dtype=np.int32)
        if told is None:
            number = self._next_number
            self._next_number += 1
        else:
            number = told.number
        rules = None if told is not None and told.rules is chunk.rules else chunk.rules
        turns = None if told is not None and told.turns is chunk.turns else chunk.turns
        self._told[id(chunk.block_tables)] = _Told(number, chunk.block_tables, chunk.stop, chunk.rules, chunk.turns)
        return ToldChunk(number, chunk.row, chunk.start, chunk.stop, first, blocks, rules, turns)


@dataclass(slots=True)
class _Heard:
    """What this rank knows of a request."""

    block_tables: list[MutableSequence[int]]
    rules: Sequence[LayerRule] = ()
    turns: Sequence[Turn] = ()


class BatchListener:
    """The others' side: a request's chunks have the same tables, rules and turns, as objects, while rank 0's have."""

    def __init__(self) -> None:
        self._heard: dict[int, _Heard] = {}

    def batch(self, told: ToldBatch) -> Batch:
        """What rank 0 runs, as far as a runner looks at it."""
        chunks = tuple(self._chunk(chunk) for chunk in told.chunks)
        for number in told.forgotten:
            del self._heard[number]
        sampled: tuple[Request, ...] = ()  # are the engine's
        return Batch(
            told.token_ids,
            told.positions,
            chunks,
            told.sampled_rows,
            sampled,
            told.adapter_ranges,
            told.num_layers,
        )

    def _chunk(self, told: ToldChunk) -> ChunkView:
        if told.number not in self._heard:
            self._heard[told.number] = _Heard([array("i") for _ in told.blocks])
        heard = self._heard[told.number]
        if told.rules is not None:
            heard.rules = told.rules
        if told.turns is not None:
            heard.turns = told.turns
        for table, blocks in zip(heard.block_tables, told.blocks.tolist(), strict=True):
            del table[told.first_block :]
            table.extend(blocks)
        return ChunkView(told.row, told.start, told.stop, heard.rules, heard.turns, heard.block_tables)
