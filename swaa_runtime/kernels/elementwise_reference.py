"""The plain torch twins of `elementwise`: slow, obviously right, and with the same signatures."""

from __future__ import annotations

import torch
from torch.nn import functional

from swaa_runtime.kv_cache.quantise import quantise


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """See elementwise.rms_norm."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return _given(out, weight * normed.to(x.dtype))


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See elementwise.add_rms_norm."""
    residual.add_(x)
    return rms_norm(residual, weight, eps, out), residual


def silu_and_mul(x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """See elementwise.silu_and_mul."""
    gate, up = x.chunk(2, dim=-1)
    return _given(out, functional.silu(gate) * up)


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
    """See elementwise.norm_rope_and_store."""
    num_kv_heads, head_dim = keys.shape[-2:]
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    query, key, value = (
        heads[:, : -2 * num_kv_heads],
        heads[:, -2 * num_kv_heads : -num_kv_heads],
        heads[:, -num_kv_heads:],
    )
    if q_norm is not None and k_norm is not None:
        query.copy_(rms_norm(query, q_norm, eps))
        key.copy_(rms_norm(key, k_norm, eps))
    query.copy_(_rotated(query, cos, sin))
    kept = slots >= 0
    blocks, offsets = slots[kept] // keys.shape[1], slots[kept] % keys.shape[1]
    for index, (rows, stored) in enumerate(((_rotated(key, cos, sin)[kept], keys), (value[kept], values))):
        if scales is not None:
            rows, scales[index][blocks, :, offsets] = quantise(rows, stored.dtype)
        stored[blocks, offsets] = rows
    return query


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    low, high = x.float().chunk(2, dim=-1)
    turned = torch.cat((-high, low), dim=-1)
    return (x.float() * cos.float().unsqueeze(1) + turned * sin.float().unsqueeze(1)).to(x.dtype)


def _given(out: torch.Tensor | None, result: torch.Tensor) -> torch.Tensor:
    return result if out is None else out.copy_(result)
