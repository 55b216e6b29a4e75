"""Matmuls of a few rows, as decoding has them: their time is that of reading the weight once.

Twin: `torch.nn.functional.linear`. Sums are float32, in an order that depends on shapes alone: the same input gives the
same bits. Which tiles a shape gets is a small table, not a search at run time: starting takes the same time every time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch.nn import functional
from triton import language as tl

MAX_ROWS = 16
"""Of the input: the smallest tile of the matrix units."""

MANY_COLUMNS = 32768
"""Outputs above this (the LM head) make enough programs of larger tiles."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """What one program does: `columns` outputs, `depth` inputs at a time, with so many warps and loads in flight."""

    columns: int
    depth: int
    num_warps: int
    num_stages: int


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """torch's linear, x [M, K], weight [N, K] -> [M, N], by `skinny_linear` where that is for it."""
    if x.shape[0] <= MAX_ROWS:
        return skinny_linear(x, weight, bias)
    return functional.linear(x, weight, bias)


def skinny_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x [M, K], M at most MAX_ROWS, weight [N, K], bias [N] -> [M, N]; all contiguous, of one dtype."""
    (rows, depth), columns = x.shape, weight.shape[0]
    out = x.new_empty(rows, columns) if out is None else out
    tiles = choose_tiles(rows, columns)
    grid = (triton.cdiv(columns, tiles.columns),)
    options = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
    if rows == 1:
        _vector_kernel[grid](
            x,
            weight,
            bias,
            out,
            columns,
            K=depth,
            BIAS=bias is not None,
            N_TILE=tiles.columns,
            K_TILE=tiles.depth,
            **options,
        )
    else:
        _rows_kernel[grid](
            x,
            weight,
            bias,
            out,
            rows,
            columns,
            K=depth,
            BIAS=bias is not None,
            M_TILE=MAX_ROWS,
            N_TILE=tiles.columns,
            K_TILE=tiles.depth,
            WIDEN=x.device.type == "cpu",
            **options,
        )
    return out


def choose_tiles(rows: int, columns: int) -> Tiles:
    """Enough programs to fill 132 multiprocessors several times, of loads as wide as they get."""
    many = columns >= MANY_COLUMNS
    if rows == 1:
        return Tiles(columns=8 if many else 4, depth=512, num_warps=4, num_stages=1)
    if many:
        return Tiles(columns=64, depth=128, num_warps=4, num_stages=4)
    return Tiles(columns=32 if columns >= 6144 else 16, depth=256, num_warps=4, num_stages=4)


@triton.jit
def _vector_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    columns,
    K: tl.constexpr,
    BIAS: tl.constexpr,
    N_TILE: tl.constexpr,
    K_TILE: tl.constexpr,
):
    """One row. Products are summed in place in a tile, which is reduced once at the end."""
    column = tl.program_id(0) * N_TILE + tl.arange(0, N_TILE)
    inside = column < columns
    weight_row = weight_ptr + column.to(tl.int64)[:, None] * K
    sums = tl.zeros((N_TILE, K_TILE), dtype=tl.float32)
    for start in tl.range(0, K, K_TILE, loop_unroll_factor=4):
        depth = start + tl.arange(0, K_TILE)
        # Nothing is masked where the tiles fit: a mask costs registers and narrows loads.
        if K % K_TILE == 0:
            x = tl.load(x_ptr + depth)
            weight = tl.load(weight_row + depth[None, :], mask=inside[:, None], other=0.0)
        else:
            x = tl.load(x_ptr + depth, mask=depth < K, other=0.0)
            weight = tl.load(weight_row + depth[None, :], mask=inside[:, None] & (depth < K)[None, :], other=0.0)
        sums += weight.to(tl.float32) * x.to(tl.float32)[None, :]
    result = tl.sum(sums, axis=1)
    if BIAS:
        result += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + column, result.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _rows_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    rows,
    columns,
    K: tl.constexpr,
    BIAS: tl.constexpr,
    M_TILE: tl.constexpr,
    N_TILE: tl.constexpr,
    K_TILE: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Up to M_TILE rows on the matrix units. WIDEN: multiply in float32, as the interpreter has no bfloat16 matmul."""
    row = tl.arange(0, M_TILE)
    column = tl.program_id(0) * N_TILE + tl.arange(0, N_TILE)
    inside_row, inside_column = (row < rows)[:, None], (column < columns)[None, :]
    sums = tl.zeros((M_TILE, N_TILE), dtype=tl.float32)
    for start in range(0, K, K_TILE):
        depth = start + tl.arange(0, K_TILE)
        x_mask, weight_mask = inside_row, inside_column
        if K % K_TILE != 0:
            x_mask, weight_mask = x_mask & (depth < K)[None, :], weight_mask & (depth < K)[:, None]
        x = tl.load(x_ptr + row[:, None] * K + depth[None, :], mask=x_mask, other=0.0)
        weight = tl.load(weight_ptr + column.to(tl.int64)[None, :] * K + depth[:, None], mask=weight_mask, other=0.0)
        if WIDEN:
            x, weight = x.to(tl.float32), weight.to(tl.float32)
        sums = tl.dot(x, weight, sums, input_precision="ieee")
    if BIAS:
        sums += tl.load(bias_ptr + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    at = row[:, None].to(tl.int64) * columns + column[None, :]
    tl.store(out_ptr + at, sums.to(out_ptr.dtype.element_ty), mask=inside_row & inside_column)
