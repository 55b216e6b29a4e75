"""Everything of a decoder layer that is neither a matmul nor attention, in few passes over memory.

Tensors are contiguous. Arithmetic is float32; where transformers rounds to the model's dtype on the way to a norm or an
activation, so do these. No call waits for the device or allocates if it is given `out`: all of it can be captured in a
CUDA graph. Offsets are int64: a prompt's activations have more than 2**31 elements.
"""

from __future__ import annotations

import math

import torch
import triton
from triton import language as tl

from swaa_runtime.kernels.overlap import FEW_TOKENS, launch_options, wait_for_previous
from swaa_runtime.kv_cache.quantise import LARGEST

SILU_BLOCK = 1024
TILE_TOKENS, MAX_TILE_HEADS = 16, 8


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """The RMS norm of transformers' decoders: x [T, N], weight [N] -> [T, N]. `out` may be `x`."""
    out = torch.empty_like(x) if out is None else out
    _launch_norm(x, None, weight, eps, out)
    return out


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add x [T, N] to the residual [T, N], in place; returns the norm of the sum, and the residual.

    `out`, which takes the norm, may be `x`.
    """
    out = torch.empty_like(x) if out is None else out
    _launch_norm(x, residual, weight, eps, out)
    return out, residual


def silu_and_mul(x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """silu(gate) * up of x [T, 2 F], whose first half is the gate: [T, F]."""
    num_tokens, size = x.shape[0], x.shape[1] // 2
    out = x.new_empty(num_tokens, size) if out is None else out
    grid = (num_tokens, triton.cdiv(size, SILU_BLOCK))
    _silu_and_mul_kernel[grid](x, out, size, BLOCK=SILU_BLOCK)
    return out


def norm_rope_and_store(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    eps: float,
    slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Norm (if there is one) and rotate the heads of a step's queries and keys, and store its keys and values.

    Args:
        qkv: [T, (H + 2 Hk) * D], D a power of two. Its queries are overwritten.
        cos, sin: [T, D], as transformers' rotary embedding gives them.
        q_norm, k_norm: weights [D] of the norms per head, both or none.
        slots: int64 [T], flat token slots (block id * block size + offset); of a negative one nothing is stored.
        keys, values: the memory behind them, [num_blocks, block size, Hk, D].
        scales: if that is of 8 bits, the memory of its scales (see `KVStorage`).

    Returns:
        The queries, [T, H, D]: a view of `qkv`, so not contiguous.
    """
    num_tokens = qkv.shape[0]
    num_kv_heads, head_dim = keys.shape[-2:]
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    # Of few tokens, a program takes one head of one, so that there are enough programs; else a tile of heads. All of a
    # tile are queries, or all are keys, or all are values: it must divide both numbers.
    few = num_tokens <= FEW_TOKENS
    tile_heads = 1 if few else math.gcd(num_heads, num_kv_heads, MAX_TILE_HEADS)
    tile_tokens = 1 if few else TILE_TOKENS
    grid = (triton.cdiv(num_tokens, tile_tokens), (num_heads + 2 * num_kv_heads) // tile_heads)
    key_scales, value_scales = (None, None) if scales is None else scales
    _norm_rope_store_kernel[grid](
        qkv,
        cos,
        sin,
        q_norm,
        k_norm,
        slots,
        keys,
        values,
        key_scales,
        value_scales,
        num_tokens,
        eps,
        HEADS=num_heads,
        KV_HEADS=num_kv_heads,
        BLOCK_SIZE=keys.shape[1],
        LARGEST=LARGEST.get(keys.dtype),
        HALF=head_dim // 2,
        NORM=q_norm is not None,
        TOKENS=tile_tokens,
        TILE_HEADS=tile_heads,
        num_warps=1 if few else 4,
        **launch_options(qkv.device, num_tokens),
    )
    return qkv.view(num_tokens, -1, head_dim)[:, :num_heads]


def _launch_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, out: torch.Tensor
) -> None:
    num_tokens, size = x.shape
    block = triton.next_power_of_2(size)
    _norm_kernel[(num_tokens,)](
        x,
        residual,
        weight,
        out,
        eps,
        SIZE=size,
        ADD=residual is not None,
        BLOCK=block,
        num_warps=min(16, max(1, block // 512)),
        **launch_options(x.device, num_tokens),
    )


@triton.jit
def _norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    eps,
    SIZE: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a row, which it holds whole."""
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    at = tl.program_id(0).to(tl.int64) * SIZE + column
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        wait_for_previous()
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(residual_ptr.dtype.element_ty)
        tl.store(residual_ptr + at, rounded, mask=inside)
        x = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / SIZE + eps)
    normed = (x * scale).to(out_ptr.dtype.element_ty).to(tl.float32) * weight
    tl.store(out_ptr + at, normed.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _silu_and_mul_kernel(x_ptr, out_ptr, size, BLOCK: tl.constexpr):
    """One program a block of one row. Of few rows `skinny.gated_linear` does this on the way."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    gate = tl.load(x_ptr + row * 2 * size + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * size + size + column, mask=inside, other=0.0).to(tl.float32)
    silu = (gate * tl.sigmoid(gate)).to(out_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + row * size + column, (silu * up).to(out_ptr.dtype.element_ty), mask=inside)


# One layer's slots begin anywhere among those of all.
@triton.jit(do_not_specialize=["slots_ptr", "num_tokens"])
def _norm_rope_store_kernel(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    q_norm_ptr,
    k_norm_ptr,
    slots_ptr,
    keys_ptr,
    values_ptr,
    key_scales_ptr,
    value_scales_ptr,
    num_tokens,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    LARGEST: tl.constexpr,
    HALF: tl.constexpr,
    NORM: tl.constexpr,
    TOKENS: tl.constexpr,
    TILE_HEADS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a tile of TOKENS tokens by TILE_HEADS heads, a head at a time, in halves [TOKENS, HALF].

    LARGEST: of the dtype of keys and values, if that has scales; None: it has none.
    """
    if PDL:
        wait_for_previous()
    head_dim: tl.constexpr = 2 * HALF
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    first_head = tl.program_id(1) * TILE_HEADS
    inside = (token < num_tokens)[:, None]
    lane = tl.arange(0, HALF)[None, :]
    slot = tl.load(slots_ptr + token, mask=token < num_tokens, other=-1)[:, None]
    kept = slot >= 0
    first_scale = slot // BLOCK_SIZE * (KV_HEADS * BLOCK_SIZE) + slot % BLOCK_SIZE
    source = qkv_ptr + token[:, None] * ((HEADS + 2 * KV_HEADS) * head_dim) + first_head * head_dim + lane
    if first_head >= HEADS + KV_HEADS:
        kv_head = first_head - HEADS - KV_HEADS
        target = values_ptr + slot * (KV_HEADS * head_dim) + kv_head * head_dim + lane
        for head in range(TILE_HEADS):
            at = head * head_dim
            low, high = tl.load(source + at, mask=inside), tl.load(source + at + HALF, mask=inside)
            if LARGEST is None:
                tl.store(target + at, low, mask=kept)
                tl.store(target + at + HALF, high, mask=kept)
            else:
                scale_ptr = value_scales_ptr + first_scale + (kv_head + head) * BLOCK_SIZE
                _store_quantised(target + at, scale_ptr, low, high, kept, HALF, LARGEST)
    else:
        angle = token[:, None] * head_dim + lane
        cos_low = tl.load(cos_ptr + angle, mask=inside, other=0.0).to(tl.float32)
        cos_high = tl.load(cos_ptr + angle + HALF, mask=inside, other=0.0).to(tl.float32)
        sin_low = tl.load(sin_ptr + angle, mask=inside, other=0.0).to(tl.float32)
        sin_high = tl.load(sin_ptr + angle + HALF, mask=inside, other=0.0).to(tl.float32)
        is_query = first_head < HEADS
        kv_head = first_head - HEADS
        target = keys_ptr + slot * (KV_HEADS * head_dim) + kv_head * head_dim + lane
        if NORM:
            weight_ptr = q_norm_ptr if is_query else k_norm_ptr
            weight_low = tl.load(weight_ptr + lane).to(tl.float32)
            weight_high = tl.load(weight_ptr + HALF + lane).to(tl.float32)
        for head in range(TILE_HEADS):
            at = head * head_dim
            low = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
            high = tl.load(source + at + HALF, mask=inside, other=0.0).to(tl.float32)
            if NORM:
                square = tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)
                scale = tl.rsqrt(square / head_dim + eps)[:, None]
                low = (low * scale).to(qkv_ptr.dtype.element_ty).to(tl.float32) * weight_low
                high = (high * scale).to(qkv_ptr.dtype.element_ty).to(tl.float32) * weight_high
                low = low.to(qkv_ptr.dtype.element_ty).to(tl.float32)
                high = high.to(qkv_ptr.dtype.element_ty).to(tl.float32)
            rotated_low = low * cos_low - high * sin_low
            rotated_high = high * cos_high + low * sin_high
            if is_query:
                tl.store(source + at, rotated_low.to(qkv_ptr.dtype.element_ty), mask=inside)
                tl.store(source + at + HALF, rotated_high.to(qkv_ptr.dtype.element_ty), mask=inside)
            elif LARGEST is None:
                tl.store(target + at, rotated_low.to(keys_ptr.dtype.element_ty), mask=kept)
                tl.store(target + at + HALF, rotated_high.to(keys_ptr.dtype.element_ty), mask=kept)
            else:
                scale_ptr = key_scales_ptr + first_scale + (kv_head + head) * BLOCK_SIZE
                rounded_low = rotated_low.to(qkv_ptr.dtype.element_ty)
                rounded_high = rotated_high.to(qkv_ptr.dtype.element_ty)
                _store_quantised(target + at, scale_ptr, rounded_low, rounded_high, kept, HALF, LARGEST)


@triton.jit
def _store_quantised(target, scale_ptr, low, high, kept, HALF: tl.constexpr, LARGEST: tl.constexpr):
    """Both halves of a head's row in 8 bits, and its scale: see `kv_cache.quantise`."""
    low, high = low.to(tl.float32), high.to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(low), axis=1), tl.max(tl.abs(high), axis=1))[:, None]
    steps = tl.where(largest > 0, LARGEST / tl.where(largest > 0, largest, 1.0), 0.0)
    low, high = low * steps, high * steps
    if target.dtype.element_ty == tl.int8:
        low, high = tl.floor(low + 0.5), tl.floor(high + 0.5)
    tl.store(target, low.to(target.dtype.element_ty), mask=kept)
    tl.store(target + HALF, high.to(target.dtype.element_ty), mask=kept)
    tl.store(scale_ptr, largest * (1.0 / LARGEST), mask=kept)
