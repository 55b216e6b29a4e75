"""Attention of one step by the Triton kernels: what each launch has to do is worked out once, for all layers alike.

Every chunk is cut into runs (`visibility.query_runs`), and every run goes where it is cheapest:

    a prompt's many queries that see everything    dense attention on gathered keys (see `prefix`)
    a prompt's queries that see sinks and window   tiles, each reading all of its own keys in place
    few queries: a tail, or a generated token      tiles whose keys are shared out over many programs
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from swaa_runtime.attention.backend import ChunkView
from swaa_runtime.attention.prefix import MAX_PIECE, PrefixAttention, doubled
from swaa_runtime.config import KVDtypeName
from swaa_runtime.errors import ModelNotSupported
from swaa_runtime.kernels.paged_attention import SEES_ALL, TILE_FIELDS, Launch, Tiles, paged_attention, queries_per_tile
from swaa_runtime.kv_cache.block_pool import NULL_BLOCK
from swaa_runtime.kv_cache.storage import KVStorage
from swaa_runtime.recipe import LayerRule
from swaa_runtime.shape import ModelShape
from swaa_runtime.upload import upload
from swaa_runtime.visibility import QueryRun, query_runs

DENSE_KEYS = 2048
"""Of no more keys the tiles take all queries: one launch fewer, and none that a dense kernel prepares itself for."""

SPLIT_QUERIES = 128
"""Runs of no more queries share out their keys: they alone would leave most of a GPU idle."""

LONG_SPLIT_QUERIES, LONG_KEYS = 512, 4096
"""So do those of up to so many queries over more than so many keys: each of their few programs would read long."""

PROGRAMS = 512
"""Programs of a launch that keep a GPU's memory busy: about four a multiprocessor."""

UNEVEN_PROGRAMS = 8192
"""The same where tiles may read very different numbers of keys, and nobody knows yet. On an H200 it makes a launch of 8
to 32 generated tokens 2.4 to 4.7 times as fast if one of them sees 60,000 keys and the others 2,000, and costs up to
6 % where all see as many."""

MAX_SPLITS = 32

MERGE_KEYS = 0.5
"""To merge one part more of a query's result takes about as long as a program needs for so many keys."""

MAX_PARTS = 4096
"""Of all queries of a launch: their results are kept in float32 until they are merged."""

FP8_CAPABILITY = (8, 9)
"""The first that converts float8."""

MIN_SIZE = 16
"""Of a side of the matrix units' operands."""


@dataclass(frozen=True, slots=True)
class DenseRun:
    """Queries of chunk `chunk`, rows [row, row + stop - start) of the step, that see everything below them."""

    chunk: int
    row: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What layers of one and the same rules have to do."""

    dense: tuple[DenseRun, ...]
    launches: tuple[Tiles, ...]


class TritonContext:
    """The context of one step (see `backend.StepContext`); launches are planned once for layers of the same rules."""

    def __init__(
        self,
        storage: KVStorage,
        shape: ModelShape,
        prefix: PrefixAttention,
        chunks: Sequence[ChunkView],
        slots: torch.Tensor,
    ) -> None:
        """`slots`: int64 [num_layers, T], where each of the step's tokens lives in each layer."""
        self.storage = storage
        self.slots = slots
        self._prefix = prefix
        self._chunks = chunks
        plans: dict[tuple[int, ...], LayerPlan] = {}  # by the rules' identities, as in `step_tables`
        self._plans: list[LayerPlan] = []
        for rules in zip(*(chunk.rules for chunk in chunks), strict=True):
            same = tuple(map(id, rules))
            if same not in plans:
                plans[same] = plan_layer(chunks, rules, shape, slots.device, prefix.query_multiple)
            self._plans.append(plans[same])
        table, self._host_offsets = step_tables(chunks, len(slots), storage.block_size_tokens)
        self._table, self._offsets = upload(table, slots.device), upload(self._host_offsets, slots.device)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See AttentionContext.attend."""
        self.storage.write(self.slots[layer], key.transpose(0, 1), value.transpose(0, 1))
        return self.attend_stored(layer, query.transpose(0, 1), scale)

    def attend_stored(self, layer: int, query: torch.Tensor, scale: float) -> torch.Tensor:
        """See StoredContext.attend_stored."""
        out = query.new_empty(query.shape)
        plan = self._plans[layer]
        for tiles in plan.launches:
            launch = Launch(tiles, self._offsets[layer], self._table)
            paged_attention(query, self.storage.keys, self.storage.values, launch, scale, out, self.storage.scales)
        for run in plan.dense:
            rows = slice(run.row, run.row + run.stop - run.start)
            out[rows] = self._dense(run, layer, query[rows], scale)
        return out

    def _dense(self, run: DenseRun, layer: int, query: torch.Tensor, scale: float) -> torch.Tensor:
        """Queries [n, num_heads, head_dim] over everything up to themselves."""
        at = int(self._host_offsets[layer, run.chunk, 0])
        blocks = self._table[at : at - (-run.stop // self.storage.block_size_tokens)]
        key, value = self.storage.gather_blocks(blocks)
        return self._prefix.attend(query, key[: run.stop], value[: run.stop], scale)


def warm_up(
    storage: KVStorage, shape: ModelShape, prefix: PrefixAttention, query_row: int, max_queries: int, max_keys: int
) -> None:
    """Compile all variants of the attention kernels, and prepare dense attention for all sizes that it is given.

    Eight variants of about 1 s each, or milliseconds from Triton's cache; of cuDNN 0.1 s a pair of sizes, in every
    process. No block is written, and of them only the null block is read. Beside them K of one layer of the longest
    sequence is allocated.

    Args:
        query_row: elements from one query to the next, as the decoder gives them.
        max_queries, max_keys: of a step, and of a sequence.
    """
    device, num_keys = storage.keys.device, min(max_keys, MAX_PIECE)
    rows = torch.zeros(min(max_queries, num_keys), query_row, dtype=storage.dtype, device=device)
    query = rows.view(len(rows), -1, shape.head_dim)[:, : shape.num_heads]
    key = rows.new_zeros(num_keys, shape.num_kv_heads, shape.head_dim)
    prefix.warm_up(query, key, key, shape.head_dim**-0.5)

    # One query, at position 0 of a sequence in the null block.
    ints = partial(torch.tensor, dtype=torch.int32, device=device)
    fields, rules, table = ints([[0, 1, 0, 0, 0]]), ints([[SEES_ALL, 0]]), ints([NULL_BLOCK])
    offsets, row = table.new_zeros((1, 2), dtype=torch.int64), table.new_zeros(1, dtype=torch.int64)
    one, out = query[:1], torch.empty_like(query[:1])
    for max_queries in doubled(queries_per_tile(shape.num_heads, shape.num_kv_heads)):
        for splits in doubled(num_splits(1, device)):
            launch = Launch(Tiles(fields, rules, max_queries, splits, row), offsets, table)
            paged_attention(one, storage.keys, storage.values, launch, 1.0, out, storage.scales)


def check_shape(shape: ModelShape, block_size_tokens: int) -> None:
    """Raise ModelNotSupported unless the kernels take such heads and blocks."""
    for name, size in (("head_dim", shape.head_dim), ("block_size_tokens", block_size_tokens)):
        if size < MIN_SIZE or size & (size - 1):
            raise ModelNotSupported(f"{name} is {size}: Triton's kernels need a power of two of at least {MIN_SIZE}")


def check_kv_dtype(kv_dtype: KVDtypeName, device: torch.device) -> None:
    """Raise ModelNotSupported unless the kernels can read it there."""
    if kv_dtype == "fp8" and device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        raise ModelNotSupported(f"kv_dtype 'fp8' needs a GPU of compute capability {FP8_CAPABILITY}; 'int8' does not")


def plan_layer(
    chunks: Sequence[ChunkView],
    rules: Sequence[LayerRule],
    shape: ModelShape,
    device: torch.device,
    dense_multiple: int,
) -> LayerPlan:
    """Where the queries of each chunk go, in layers in which chunk i attends by rules[i].

    Dense attention is given queries from one multiple of `dense_multiple` positions to another; what lies before and
    after goes to tiles.
    """
    dense: list[DenseRun] = []
    whole: list[tuple[int, QueryRun]] = []
    shared: list[tuple[int, QueryRun]] = []
    for index, chunk in enumerate(chunks):
        for run in query_runs(rules[index], chunk.turns, chunk.start, chunk.stop):
            start, stop = _dense_queries(run, dense_multiple)
            if start < stop:
                dense.append(DenseRun(index, chunk.row + start - chunk.start, start, stop))
            for low, high in ((run.start, start), (stop, run.stop)):
                if low < high:
                    part = QueryRun(low, high, run.sees_all)
                    (shared if shares_keys(part) else whole).append((index, part))
    launches = []
    for runs, is_shared in ((whole, False), (shared, True)):
        if runs:
            launches.append(_tiles(chunks, rules, runs, is_shared, shape, device))
    return LayerPlan(tuple(dense), tuple(launches))


def _dense_queries(run: QueryRun, multiple: int) -> tuple[int, int]:
    """Those [start, stop) of a run that dense attention takes; none: its start, twice."""
    if run.sees_all and run.stop > DENSE_KEYS and run.stop - run.start > SPLIT_QUERIES:
        start, stop = -(-run.start // multiple) * multiple, run.stop // multiple * multiple
        if start < stop:
            return start, stop
    return run.start, run.start


def shares_keys(run: QueryRun) -> bool:
    """Whether the keys of a run's tiles are shared out over several programs."""
    most = LONG_SPLIT_QUERIES if run.sees_all and run.stop > LONG_KEYS else SPLIT_QUERIES
    return run.stop - run.start <= most


def _tiles(
    chunks: Sequence[ChunkView],
    rules: Sequence[LayerRule],
    runs: Sequence[tuple[int, QueryRun]],
    is_shared: bool,
    shape: ModelShape,
    device: torch.device,
) -> Tiles:
    most = min(queries_per_tile(shape.num_heads, shape.num_kv_heads), max(run.stop - run.start for _, run in runs))
    columns = []
    for index, run in runs:
        window, sinks = tile_rule(rules[index], run.sees_all)
        num_keys = run.stop if run.sees_all else min(run.stop, window + sinks + most)
        columns.append((run.start, run.stop, chunks[index].row - chunks[index].start, index, window, sinks, num_keys))
    first, stop, to_row, table, window, sinks, num_keys = np.array(columns, dtype=np.int64).T
    counts = stop - first
    of_run, at = _numbered(-(-counts // most))
    start = first[of_run] + at * most
    partial_row = (np.cumsum(counts) - counts)[of_run] + at * most
    fields = (to_row[of_run] + start, np.minimum(stop[of_run] - start, most), start, table[of_run], partial_row)
    tiles = upload(np.stack([*fields, window[of_run], sinks[of_run]], axis=1).astype(np.int32), device)
    splits, rows = 1, None
    if is_shared:
        splits = uneven_splits(num_keys[of_run], int(counts.sum()), shape.num_kv_heads, device)
    if splits > 1:
        of_run, at = _numbered(counts)
        rows = upload((to_row + first)[of_run] + at, device)
    return Tiles(tiles[:, :TILE_FIELDS].contiguous(), tiles[:, TILE_FIELDS:].contiguous(), most, splits, rows)


def _numbered(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For counts[i] things of each i, one after the other: their i, and their number among its own."""
    of = np.repeat(np.arange(len(counts)), counts)
    return of, np.arange(len(of)) - (np.cumsum(counts) - counts)[of]


def tile_rule(rule: LayerRule, sees_all: bool) -> tuple[int, int]:
    """Window and sink tokens of a tile, as the kernel takes them (see `Tiles.rules`)."""
    return (SEES_ALL, 0) if sees_all or rule.window is None else (rule.window, rule.sink_tokens)


def num_splits(num_programs: float, device: torch.device, wanted_programs: int = PROGRAMS) -> int:
    """Into how many parts the keys of each tile are cut: a power of two, so that the launch has enough programs.

    Triton's interpreter runs one program after the other: there two do.
    """
    wanted = min(MAX_SPLITS if device.type == "cuda" else 2, int(wanted_programs / num_programs))
    return 1 << max(0, wanted.bit_length() - 1)


def uneven_splits(num_keys: np.ndarray, num_queries: int, num_kv_heads: int, device: torch.device) -> int:
    """The same for tiles that read num_keys[i] keys, of `num_queries` queries together.

    The launch ends with the tile of the most keys. So it is cut until its parts are fair ones: short tiles fill a GPU
    as little as if there were fewer of them. A part more saves its programs keys / parts^2, and is to be merged for
    every query.
    """
    longest = int(num_keys.max())
    as_long = num_kv_heads * int(num_keys.sum()) / longest  # so many programs like the longest would have as much to do
    parts = num_splits(as_long, device)
    merged = min(MAX_PARTS / num_queries, math.sqrt(longest / (MERGE_KEYS * num_queries)))
    return min(parts, 1 << max(0, int(merged).bit_length() - 1))


def step_tables(chunks: Sequence[ChunkView], num_layers: int, block_size_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Block ids of what the chunks' queries see, and where to look them up.

    Returns:
        int32 ids of all layers and chunks, one after the other, and int64 [num_layers, num_chunks, 2]: where the ids
        of logical block 0 and of the first sink block would be. What no query sees is left out, so a prompt of a
        million tokens does not send its whole table in every step.
    """
    ids, offsets = array("i"), array("q")
    for chunk in chunks:
        stop = -(-chunk.stop // block_size_tokens)
        seen: dict[int, tuple[int, int]] = {}  # by the rule's identity, as this is asked for each layer of each chunk
        for rule, table in zip(chunk.rules, chunk.block_tables, strict=True):
            if id(rule) not in seen:
                seen[id(rule)] = _seen_blocks(rule, chunk, block_size_tokens)
            num_sinks, first = seen[id(rule)]
            offsets.extend((len(ids) + num_sinks - first, len(ids)))
            ids.extend(table[:num_sinks])
            ids.extend(table[first:stop])
    by_chunk = np.frombuffer(offsets, dtype=np.int64).reshape(len(chunks), num_layers, 2)
    return np.frombuffer(ids, dtype=np.int32), np.ascontiguousarray(by_chunk.transpose(1, 0, 2))


def _seen_blocks(rule: LayerRule, chunk: ChunkView, block_size_tokens: int) -> tuple[int, int]:
    """How many blocks at the start, and from which block on, a chunk's queries see."""
    runs = query_runs(rule, chunk.turns, chunk.start, chunk.stop)
    if rule.window is None or any(run.sees_all for run in runs):
        return 0, 0
    first = max(0, chunk.start - rule.window + 1) // block_size_tokens
    return min(first, -(-rule.sink_tokens // block_size_tokens)), first
