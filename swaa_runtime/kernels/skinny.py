"""Matmuls of a few rows, as decoding has them: their time is that of reading the weight once.

Twins: `torch.nn.functional.linear`, and that before `silu_and_mul` or `add_rms_norm` of `elementwise_reference`. Sums
are float32, in an order that depends on shapes alone: the same input gives the same bits. Which tiles a shape gets is a
small table, not a search at run time: starting takes the same time every time.

A weight of few outputs is split along its inputs too, so that there are enough programs to read it:

x [M, K], weight [N, K] ──▶ partial sums [split, M, N], float32 ──▶ their sum in this order, bias, gate or norm ──▶ out
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import triton
from torch.nn import functional
from triton import language as tl

from swaa_runtime.kernels.elementwise import add_rms_norm, add_to_residual, row_options, silu_and_mul, store_normed
from swaa_runtime.kernels.overlap import early_launch, early_next, wait_for_previous

MAX_ROWS = 16
"""Of the input: the smallest tile of the matrix units."""

MAX_UNROLL = 20
"""Turns of the loop over a row that are written out: of Qwen3-4B's shapes all, so that 10 to 20 loads are in flight."""


SUM_TILE = 256
"""Outputs of one row that a program adds up: 64 threads load 16 bytes of each part."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """What one program does: `columns` outputs, `depth` inputs at a time, with so many warps and loads in flight.

    Attributes:
        split: so many programs share the inputs of the same outputs.
    """

    columns: int
    depth: int
    num_warps: int
    num_stages: int
    split: int = 1


# All threads together load `depth` bfloat16 in 16 bytes each. Any other depth would have x laid out otherwise than the
# weight, and exchanged between threads, which then wait for each other in every turn of the loop.
ONE_ROW = Tiles(columns=2, depth=1024, num_warps=4, num_stages=1)

# By the most outputs they are for: the first that takes a weight; from a sweep (benchmarks/LOG.md). Each program reads
# all of x, or its part, beside the weight: of 16 rows as much again as 16 outputs. What is in flight, num_stages *
# (columns + 16) * depth * 2 bytes, is at most half of a multiprocessor's memory: two programs share it, float32 fits.
FEW_ROWS = (
    (4096, Tiles(columns=64, depth=128, num_warps=4, num_stages=5, split=6)),  # o and down of Qwen3-4B
    (8192, Tiles(columns=32, depth=256, num_warps=4, num_stages=4)),  # its qkv
    (math.inf, Tiles(columns=64, depth=128, num_warps=4, num_stages=3)),  # gate and up, LM head
)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """torch's linear, x [M, K], weight [N, K] -> [M, N], by `skinny_linear` where that is for it."""
    if x.shape[0] <= MAX_ROWS:
        return skinny_linear(x, weight, bias)
    return functional.linear(x, weight, bias)


def gated_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """silu(gate) * up of a linear whose first half of the outputs is the gate: weight [2 F, K] -> [M, F]."""
    if x.shape[0] <= MAX_ROWS:
        out = x.new_empty(x.shape[0], weight.shape[0] // 2)
        _launch(x, weight, bias, out, gated=True)
        return out
    return silu_and_mul(functional.linear(x, weight, bias))


def normed_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """Add a linear to the residual [M, N], in place; returns the RMS norm of the sum, by its weight [N]."""
    (rows, depth), columns = x.shape, weight.shape[0]
    if rows > MAX_ROWS or (tiles := choose_tiles(rows, columns, depth)).split == 1:
        added = linear(x, weight, bias)
        return add_rms_norm(added, residual, norm_weight, eps, added)[0]
    partial, out = _sums_of_parts(x, weight, tiles, gated=False), torch.empty_like(residual)
    _sum_norm_kernel[(rows,)](
        partial,
        bias,
        residual,
        norm_weight,
        out,
        eps,
        rows,
        BIAS=bias is not None,
        SPLIT=tiles.split,
        SIZE=columns,
        **row_options(columns),
        **early_launch(x.device),
    )
    return out


def skinny_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x [M, K], M at most MAX_ROWS, weight [N, K], bias [N] -> [M, N]; all contiguous, of one dtype."""
    out = x.new_empty(x.shape[0], weight.shape[0]) if out is None else out
    _launch(x, weight, bias, out, gated=False)
    return out


def choose_tiles(rows: int, columns: int, depth: int) -> Tiles:
    """Enough programs to fill 132 multiprocessors several times, of loads as wide as they get."""
    if rows == 1:
        return ONE_ROW
    tiles = next(tiles for most, tiles in FEW_ROWS if columns <= most)
    return replace(tiles, split=min(tiles.split, triton.cdiv(depth, tiles.depth)))


def choose_unroll(depth: int, tiles: Tiles, *, peeled: bool) -> int:
    """Turns of the loop to write out; more than there are would be none. `peeled`: the first is taken out of it."""
    return max(1, min(MAX_UNROLL, -(-depth // tiles.depth) - peeled))


def _launch(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, *, gated: bool
) -> None:
    (rows, depth), columns = x.shape, weight.shape[0]
    tiles = choose_tiles(rows, columns, depth)
    if rows == 1:
        overlap = early_launch(x.device)
        unroll = choose_unroll(depth, tiles, peeled=overlap["PDL"])
        options = _options(depth, tiles, bias, gated=gated)
        _vector_kernel[_grid(columns, tiles)](x, weight, bias, out, columns, UNROLL=unroll, **options, **overlap)
    elif tiles.split == 1:
        _multiply_rows(x, weight, bias, out, tiles, gated=gated)
    else:
        partial = _sums_of_parts(x, weight, tiles, gated=gated)
        _sum_kernel[(triton.cdiv(columns, SUM_TILE), rows)](
            partial,
            bias,
            out,
            rows,
            columns,
            BIAS=bias is not None,
            GATED=gated,
            SPLIT=tiles.split,
            N_TILE=SUM_TILE,
            num_warps=2,
            **early_launch(x.device),
        )


def _sums_of_parts(x: torch.Tensor, weight: torch.Tensor, tiles: Tiles, *, gated: bool) -> torch.Tensor:
    """float32 [split, M, N], by the part of the inputs."""
    partial = x.new_empty(tiles.split, x.shape[0], weight.shape[0], dtype=torch.float32)
    _multiply_rows(x, weight, None, partial, tiles, gated=gated)
    return partial


def _multiply_rows(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, tiles: Tiles, *, gated: bool
) -> None:
    (rows, depth), columns = x.shape, weight.shape[0]
    _rows_kernel[_grid(columns, tiles)](
        x,
        weight,
        bias,
        out,
        rows,
        columns,
        M_TILE=MAX_ROWS,
        SPLIT=tiles.split,
        WIDEN=x.device.type == "cpu",  # the interpreter, which runs there, has no matmul of bfloat16
        **_options(depth, tiles, bias, gated=gated),
        **early_next(x.device),
    )


def _grid(columns: int, tiles: Tiles) -> tuple[int, int]:
    return triton.cdiv(columns, tiles.columns), tiles.split


def _options(depth: int, tiles: Tiles, bias: torch.Tensor | None, *, gated: bool) -> dict[str, int]:
    return {
        "K": depth,
        "BIAS": bias is not None,
        "GATED": gated,
        "N_TILE": tiles.columns,
        "K_TILE": tiles.depth,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }


@triton.jit
def _weight_rows(columns, N_TILE: tl.constexpr, GATED: tl.constexpr):
    """Rows of the weight that a program multiplies, [N_TILE], and whether they exist. GATED: gate and up in turn."""
    index = tl.program_id(0) * N_TILE + tl.arange(0, N_TILE)
    inside = index < columns
    if GATED:
        index = index // 2 + index % 2 * (columns // 2)
    return index.to(tl.int64), inside


@triton.jit
def _weight_tile(weight_row, inside, depth, K: tl.constexpr, K_TILE: tl.constexpr):
    """float32 [N_TILE, K_TILE]. Where tiles fit, no mask along the depth: it costs registers and narrows loads."""
    mask = inside[:, None]
    if K % K_TILE != 0:
        mask = mask & (depth < K)[None, :]
    return tl.load(weight_row + depth[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _input_tile(x_ptr, depth, K: tl.constexpr, K_TILE: tl.constexpr):
    """float32 [K_TILE]."""
    if K % K_TILE == 0:
        return tl.load(x_ptr + depth).to(tl.float32)
    return tl.load(x_ptr + depth, mask=depth < K, other=0.0).to(tl.float32)


@triton.jit
def _gated(sums, dtype: tl.constexpr):
    """silu(gate) * up of sums [..., 2], float32, with what is rounded between matmul and product."""
    gate, up = tl.split(sums)
    gate, up = gate.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32)
    return (gate * tl.sigmoid(gate)).to(dtype).to(tl.float32) * up


@triton.jit
def _vector_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    columns,
    K: tl.constexpr,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    N_TILE: tl.constexpr,
    K_TILE: tl.constexpr,
    UNROLL: tl.constexpr,
    PDL: tl.constexpr,
):
    """One row. Products are summed in place in a tile, which is reduced once at the end."""
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    column, inside = _weight_rows(columns, N_TILE, GATED)
    weight_row = weight_ptr + column[:, None] * K
    sums = tl.zeros((N_TILE, K_TILE), dtype=tl.float32)
    first: tl.constexpr = K_TILE if PDL else 0
    if PDL:  # what the first turn needs of the weight is on its way while the kernel before ends
        depth = tl.arange(0, K_TILE)
        weight = _weight_tile(weight_row, inside, depth, K, K_TILE)
        wait_for_previous()
        sums += weight * _input_tile(x_ptr, depth, K, K_TILE)[None, :]
    for start in tl.range(first, K, K_TILE, loop_unroll_factor=UNROLL):
        depth = start + tl.arange(0, K_TILE)
        weight = _weight_tile(weight_row, inside, depth, K, K_TILE)
        sums += weight * _input_tile(x_ptr, depth, K, K_TILE)[None, :]
    result = tl.sum(sums, axis=1)
    if BIAS:
        result += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        product = _gated(tl.reshape(result, (N_TILE // 2, 2)), dtype)
        at = tl.program_id(0) * (N_TILE // 2) + tl.arange(0, N_TILE // 2)
        tl.store(out_ptr + at, product.to(dtype), mask=at < columns // 2)
    else:
        tl.store(out_ptr + column, result.to(dtype), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _rows_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    rows,
    columns,
    K: tl.constexpr,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    M_TILE: tl.constexpr,
    N_TILE: tl.constexpr,
    K_TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    WIDEN: tl.constexpr,
    PDL: tl.constexpr,
):
    """Up to M_TILE rows on the matrix units. WIDEN: multiply in float32.

    SPLIT above 1: program_id(1) tells the part of the inputs, whose sums go to out [SPLIT, rows, columns].
    """
    if PDL:
        wait_for_previous()
    row = tl.arange(0, M_TILE)
    column, inside = _weight_rows(columns, N_TILE, GATED)
    inside_row = (row < rows)[:, None]
    turns: tl.constexpr = (K + K_TILE - 1) // K_TILE
    part = tl.program_id(1)
    # 64 outputs are a first operand of Hopper's own matrix units, which read it where it was loaded to.
    weight_first: tl.constexpr = N_TILE >= 64
    sums = tl.zeros((N_TILE, M_TILE) if weight_first else (M_TILE, N_TILE), dtype=tl.float32)
    for turn in range(part * turns // SPLIT, (part + 1) * turns // SPLIT):
        depth = turn * K_TILE + tl.arange(0, K_TILE)
        x_mask, weight_mask = inside_row, inside[:, None]
        if K % K_TILE != 0:
            x_mask, weight_mask = x_mask & (depth < K)[None, :], weight_mask & (depth < K)[None, :]
        x = tl.load(x_ptr + row[:, None] * K + depth[None, :], mask=x_mask, other=0.0)
        weight = tl.load(weight_ptr + column[:, None] * K + depth[None, :], mask=weight_mask, other=0.0)
        if WIDEN:
            x, weight = x.to(tl.float32), weight.to(tl.float32)
        if weight_first:
            sums = tl.dot(weight, tl.trans(x), sums, input_precision="ieee")
        else:
            sums = tl.dot(x, tl.trans(weight), sums, input_precision="ieee")
    if weight_first:
        sums = tl.trans(sums)
    if SPLIT == 1:
        _store_rows(sums, bias_ptr, out_ptr, row, rows, columns, BIAS, GATED, M_TILE, N_TILE)
    else:  # gate and up in turn, as they are multiplied
        at = tl.program_id(0) * N_TILE + tl.arange(0, N_TILE)
        target = out_ptr + (part * rows + row)[:, None] * columns + at[None, :]
        tl.store(target, sums, mask=inside_row & inside[None, :])


@triton.jit(do_not_specialize=["rows"])
def _sum_kernel(
    partial_ptr,
    bias_ptr,
    out_ptr,
    rows,
    columns,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    SPLIT: tl.constexpr,
    N_TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Adds up one row of what `_rows_kernel` gives of the parts of the inputs, in their order."""
    if PDL:
        wait_for_previous()
    row = tl.program_id(1) + tl.arange(0, 1)
    at = tl.program_id(0) * N_TILE + tl.arange(0, N_TILE)
    inside = (at < columns)[None, :]
    sums = tl.zeros((1, N_TILE), dtype=tl.float32)
    for part in tl.static_range(SPLIT):
        source = partial_ptr + (part * rows + row)[:, None] * columns + at[None, :]
        sums += tl.load(source, mask=inside, other=0.0)
    _store_rows(sums, bias_ptr, out_ptr, row, rows, columns, BIAS, GATED, 1, N_TILE)


@triton.jit(do_not_specialize=["rows"])
def _sum_norm_kernel(
    partial_ptr,
    bias_ptr,
    residual_ptr,
    norm_ptr,
    out_ptr,
    eps,
    rows,
    BIAS: tl.constexpr,
    SPLIT: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """The same, then the row's residual and norm: one program a row, which it holds whole."""
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    weight = tl.load(norm_ptr + column, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        wait_for_previous()
    row = tl.program_id(0)
    sums = tl.zeros((BLOCK,), dtype=tl.float32)
    for part in tl.static_range(SPLIT):
        sums += tl.load(partial_ptr + (part * rows + row) * SIZE + column, mask=inside, other=0.0)
    if BIAS:
        sums += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    rounded = sums.to(out_ptr.dtype.element_ty).to(tl.float32)
    at = row * SIZE + column
    store_normed(add_to_residual(rounded, residual_ptr + at, inside), weight, out_ptr + at, inside, eps, SIZE)


@triton.jit
def _store_rows(
    sums,
    bias_ptr,
    out_ptr,
    row,
    rows,
    columns,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    M_TILE: tl.constexpr,
    N_TILE: tl.constexpr,
):
    """Finished sums [M_TILE, N_TILE] of the rows `row`: with bias, gated and rounded."""
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    column, inside = _weight_rows(columns, N_TILE, GATED)
    inside_row = (row < rows)[:, None]
    if BIAS:
        sums += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    if GATED:
        product = _gated(tl.reshape(sums, (M_TILE, N_TILE // 2, 2)), dtype)
        at = tl.program_id(0) * (N_TILE // 2) + tl.arange(0, N_TILE // 2)
        out_mask = inside_row & (at < columns // 2)[None, :]
        tl.store(out_ptr + row[:, None] * (columns // 2) + at[None, :], product.to(dtype), mask=out_mask)
    else:
        out_mask = inside_row & inside[None, :]
        tl.store(out_ptr + row[:, None] * columns + column[None, :], sums.to(dtype), mask=out_mask)
