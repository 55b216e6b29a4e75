"""Attention over paged KV memory, reading blocks in place: one kernel for prefill chunks, tails and decoding.

A tile is up to QUERY_ROWS / group consecutive queries of one sequence; the query heads that share a KV head are packed
beside each other, so that a key is read once for all of them. A tile's keys are those of DESIGN §3:

    keys     0    S             p0-W+1         p0     p0+C
             |sink|    unread     |##############|######|      lower edge and diagonal masked, the middle not

With `splits` > 1 the key blocks of a tile are shared out over as many programs, whose results are merged by
log-sum-exp (as in FlashDecoding, arXiv 2311.01282): few queries over many keys fill the GPU that way.

What varies from step to step is read from device memory, so that a launch can be captured in a CUDA graph.

Compiling a variant takes a second, so there are few, and a service has all of them before its first request (see
`paged_triton.warm_up`): of what varies from step to step, only ROWS and whether keys are shared out make another one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

SEES_ALL = 2**30
"""A window that no position outgrows."""

TILE_FIELDS = 5
"""int32 fields of a tile: first row in the step, number of queries, position of the first, table, partial row."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """What a launch computes, on the device.

    Attributes:
        fields: int32 [n, TILE_FIELDS].
        rules: int32 [n, 2], each tile's window (SEES_ALL: everything) and sink tokens.
        max_queries: most queries of a tile.
        splits: programs that share a tile's keys.
        partial_rows: int64 [m], rows of the step by partial row: what is merged when `splits` > 1.
    """

    fields: torch.Tensor
    rules: torch.Tensor
    max_queries: int
    splits: int = 1
    partial_rows: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Launch:
    """Tiles, and where a layer's blocks are for them.

    Attributes:
        offsets: int64 [num_tables, 2], by a tile's table: where in `table` its logical block 0 would be, and where that
            of its first sink block is.
        table: int32, block ids.
    """

    tiles: Tiles
    offsets: torch.Tensor
    table: torch.Tensor


def queries_per_tile(num_heads: int, num_kv_heads: int) -> int:
    """Most queries of a prefill tile: as many as fill its rows."""
    packed: int = triton.next_power_of_2(num_heads // num_kv_heads)
    return max(1, 128 // packed)


def paged_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    launch: Launch,
    scale: float,
    out: torch.Tensor,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> None:
    """Attend the rows that the tiles name, writing them to `out`; other rows are left as they are.

    Args:
        query, out: [T, num_heads, head_dim], the last dimension contiguous.
        keys, values: [num_blocks, block_size_tokens, num_kv_heads, head_dim]; head_dim is a power of two.
        scales: of keys and values of 8 bits, float32 [num_blocks, num_kv_heads, block_size_tokens].
    """
    work = launch.tiles
    num_tiles = work.fields.shape[0]
    if num_tiles == 0:
        return
    _, num_heads, head_dim = query.shape
    _, block_size, num_kv_heads, _ = keys.shape
    group = num_heads // num_kv_heads
    packed = triton.next_power_of_2(group)
    rows = max(16, triton.next_power_of_2(work.max_queries * packed))
    tile_keys = min(block_size, 64)
    splits = work.splits
    if splits > 1:
        assert work.partial_rows is not None  # noqa: S101 - splits come with rows to merge
        count = work.partial_rows.shape[0]
        partial = torch.empty((splits, count, num_heads, head_dim), dtype=torch.float32, device=query.device)
        lse = torch.empty((splits, count, num_heads), dtype=torch.float32, device=query.device)
    else:
        partial, lse = out, out
    shape = [tile_keys, head_dim]
    key_rows, value_rows = (
        TensorDescriptor.from_tensor(kv.view(-1, num_kv_heads * head_dim), shape) for kv in (keys, values)
    )
    key_scales, value_scales = (None, None) if scales is None else scales
    _attend_kernel[(num_tiles, num_kv_heads, splits)](
        query, key_rows, value_rows, key_scales, value_scales, out, partial, lse,
        work.fields, work.rules, launch.offsets, launch.table,
        scale * math.log2(math.e), 0 if splits == 1 else count,
        query.stride(0), query.stride(1), out.stride(0), out.stride(1),
        HEADS=num_heads, GROUP=group, PACKED=packed, HEAD_DIM=head_dim, ROWS=rows, TILE_KEYS=tile_keys,
        BLOCK_SIZE=block_size, SHARED=splits > 1, FIELDS=TILE_FIELDS,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    if splits > 1:
        _merge_kernel[(count, num_heads)](
            partial, lse, out, work.partial_rows, count, out.stride(0), out.stride(1),
            HEADS=num_heads, HEAD_DIM=head_dim, SPLITS=splits, num_warps=4,
        )  # fmt: skip


# How many there are, and where in a larger tensor they begin, is no reason for another variant.
@triton.jit(do_not_specialize=["tiles_ptr", "rules_ptr", "offsets_ptr", "table_ptr", "num_partial"])
def _attend_kernel(
    query_ptr, key_rows, value_rows, key_scales, value_scales, out_ptr, partial_ptr, lse_ptr,
    tiles_ptr, rules_ptr, offsets_ptr, table_ptr,
    scale_log2, num_partial, query_row, query_head, out_row, out_head,
    HEADS: tl.constexpr, GROUP: tl.constexpr, PACKED: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr,
    TILE_KEYS: tl.constexpr, BLOCK_SIZE: tl.constexpr, SHARED: tl.constexpr, FIELDS: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    row0 = tl.load(tiles_ptr + tile * FIELDS)
    count = tl.load(tiles_ptr + tile * FIELDS + 1)
    position0 = tl.load(tiles_ptr + tile * FIELDS + 2)
    table = tl.load(tiles_ptr + tile * FIELDS + 3)
    partial0 = tl.load(tiles_ptr + tile * FIELDS + 4)
    window = tl.load(rules_ptr + tile * 2)
    sinks = tl.load(rules_ptr + tile * 2 + 1)
    blocks_ptr = table_ptr + tl.load(offsets_ptr + table * 2)
    sink_blocks_ptr = table_ptr + tl.load(offsets_ptr + table * 2 + 1)

    row = tl.arange(0, ROWS)
    query_index = row // PACKED
    head_index = row % PACKED
    head = kv_head * GROUP + head_index
    present = (query_index < count) & (head_index < GROUP)
    position = position0 + query_index
    dim = tl.arange(0, HEAD_DIM)
    query_offset = (row0 + query_index).to(tl.int64) * query_row + head * query_head
    query = tl.load(query_ptr + query_offset[:, None] + dim[None, :], mask=present[:, None], other=0.0)

    # The tile's key tiles in the order they are read: those of the sinks, then from the lower edge to the diagonal.
    stop = position0 + count
    first = tl.maximum(position0 - window + 1, 0) // TILE_KEYS
    num_sinks = tl.minimum(tl.cdiv(sinks, TILE_KEYS), first)
    total = num_sinks + tl.cdiv(stop, TILE_KEYS) - first
    total = tl.where(count > 0, total, 0)
    last = tl.maximum(total - 1, 0)  # may be the lower edge's as well, and reach beyond what is written
    edge = tl.minimum(num_sinks + tl.maximum(tl.cdiv(tl.maximum(stop - window, 0), TILE_KEYS) - first, 0), last)
    diagonal = tl.minimum(tl.maximum(num_sinks + (position0 + 1) // TILE_KEYS - first, edge), last)
    share = tl.cdiv(total, tl.num_programs(2))
    begin = split * share
    end = tl.minimum(begin + share, total)

    best = tl.full([ROWS], -1e30, dtype=tl.float32)  # finite: a row that sees none of the first keys must not be NaN
    weight = tl.zeros([ROWS], dtype=tl.float32)
    acc = tl.zeros([ROWS, HEAD_DIM], dtype=tl.float32)
    column = kv_head * HEAD_DIM
    # Of a block's scales, those of one head are adjacent.
    scale_rows: tl.constexpr = HEADS // GROUP * BLOCK_SIZE
    if key_scales is not None:
        key_scales += kv_head * BLOCK_SIZE
        value_scales += kv_head * BLOCK_SIZE
    acc, weight, best = _read_keys(
        acc, weight, best, query, key_rows, value_rows, key_scales, value_scales, column,
        blocks_ptr, sink_blocks_ptr, begin,
        tl.minimum(edge, end), num_sinks, first, position, stop, window, sinks, scale_log2,
        TILE_KEYS, BLOCK_SIZE, scale_rows, True, False,
    )  # fmt: skip
    acc, weight, best = _read_keys(
        acc, weight, best, query, key_rows, value_rows, key_scales, value_scales, column,
        blocks_ptr, sink_blocks_ptr, tl.maximum(begin, edge),
        tl.minimum(diagonal, end), num_sinks, first, position, stop, window, sinks, scale_log2,
        TILE_KEYS, BLOCK_SIZE, scale_rows, False, False,
    )  # fmt: skip
    acc, weight, best = _read_keys(
        acc, weight, best, query, key_rows, value_rows, key_scales, value_scales, column, blocks_ptr, sink_blocks_ptr,
        tl.maximum(begin, diagonal), end, num_sinks, first, position, stop, window, sinks, scale_log2,
        TILE_KEYS, BLOCK_SIZE, scale_rows, True, True,
    )  # fmt: skip

    result = acc / tl.where(weight > 0, weight, 1.0)[:, None]
    if SHARED:
        at = ((split * num_partial + partial0 + query_index) * HEADS + head).to(tl.int64)
        tl.store(partial_ptr + at[:, None] * HEAD_DIM + dim[None, :], result, mask=present[:, None])
        lse = tl.where(weight > 0, best + tl.log2(tl.where(weight > 0, weight, 1.0)), -1e30)
        tl.store(lse_ptr + at, lse, mask=present)
    else:
        out_offset = (row0 + query_index).to(tl.int64) * out_row + head * out_head
        tl.store(
            out_ptr + out_offset[:, None] + dim[None, :], result.to(out_ptr.dtype.element_ty), mask=present[:, None]
        )


@triton.jit
def _read_keys(
    acc, weight, best, query, key_rows, value_rows, key_scales, value_scales, column,
    blocks_ptr, sink_blocks_ptr, begin, end, num_sinks, first,
    position, stop, window, sinks, scale_log2,
    TILE_KEYS: tl.constexpr, BLOCK_SIZE: tl.constexpr, SCALE_ROWS: tl.constexpr,
    MASKED: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Online softmax over key tiles [begin, end) in a tile's own order. LAST: they may reach beyond the sequence."""
    lane = tl.arange(0, TILE_KEYS)
    for index in range(begin, end):
        if MASKED:  # only masked tiles can be the sinks'
            is_sink = index < num_sinks
            key_tile = tl.where(is_sink, index, first + index - num_sinks)
            block = tl.load(tl.where(is_sink, sink_blocks_ptr, blocks_ptr) + key_tile * TILE_KEYS // BLOCK_SIZE)
        else:
            key_tile = first + index - num_sinks
            block = tl.load(blocks_ptr + key_tile * TILE_KEYS // BLOCK_SIZE)
        row = block * BLOCK_SIZE + key_tile * TILE_KEYS % BLOCK_SIZE
        key = key_rows.load([row, column]).to(query.dtype)
        scores = tl.dot(query, key.T, input_precision="ieee")
        if key_scales is not None:
            scale_at = block * SCALE_ROWS + key_tile * TILE_KEYS % BLOCK_SIZE + lane
            scores *= tl.load(key_scales + scale_at)[None, :]
        if MASKED:
            key_position = key_tile * TILE_KEYS + lane
            distance = position[:, None] - key_position[None, :]
            visible = (distance >= 0) & ((distance < window) | (key_position[None, :] < sinks))
            scores = tl.where(visible, scores, float("-inf"))
        highest = tl.maximum(best, tl.max(scores, 1) * scale_log2)
        decay = tl.exp2(best - highest)
        probability = tl.exp2(scores * scale_log2 - highest[:, None])
        weight = weight * decay + tl.sum(probability, 1)
        acc = acc * decay[:, None]
        value = value_rows.load([row, column]).to(query.dtype)
        if value_scales is not None:
            value_scale = tl.load(value_scales + scale_at)
        if LAST:  # what was not written yet may be NaN, which no probability of 0 takes away
            value = tl.where((key_position < stop)[:, None], value, 0.0)
            if value_scales is not None:
                value_scale = tl.where(key_position < stop, value_scale, 0.0)
        if value_scales is not None:
            probability *= value_scale[None, :]
        acc = tl.dot(probability.to(value.dtype), value, acc, input_precision="ieee")
        best = highest
    return acc, weight, best


@triton.jit(do_not_specialize=["rows_ptr", "num_partial"])
def _merge_kernel(
    partial_ptr, lse_ptr, out_ptr, rows_ptr, num_partial, out_row, out_head,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """out = sum over splits of exp2(lse - max) partial, divided by the sum of those weights."""
    index = tl.program_id(0)
    head = tl.program_id(1)
    dim = tl.arange(0, HEAD_DIM)
    split = tl.arange(0, SPLITS)
    at = (split * num_partial + index) * HEADS + head
    lse = tl.load(lse_ptr + at)
    weight = tl.exp2(lse - tl.max(lse, 0))
    partial = tl.load(partial_ptr + at.to(tl.int64)[:, None] * HEAD_DIM + dim[None, :])
    merged = tl.sum(partial * weight[:, None], 0) / tl.sum(weight, 0)
    row = tl.load(rows_ptr + index)
    tl.store(
        out_ptr + row * out_row + head * out_head + dim,
        merged.to(out_ptr.dtype.element_ty),
        mask=(row >= 0) & (dim < HEAD_DIM),
    )
