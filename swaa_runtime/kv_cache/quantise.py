"""K and V in 8 bits, with one scale for each token and head: half the memory, and half the bytes that decoding reads.

A row of head_dim values x is kept as x / scale, rounded, with scale = max |x| / LARGEST. What is read of it in 16 bits
gives the same bits when it is kept again: a state that leaves memory and comes back is what it was.
"""

from __future__ import annotations

import torch

from swaa_runtime.config import KVDtypeName

DTYPES: dict[KVDtypeName, torch.dtype | None] = {"model": None, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
"""What values are kept in; None: as they are."""

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""The largest value that each dtype is used for."""


def quantise(rows: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [..., head_dim] as `dtype`, and their float32 scales [...]."""
    wide, limit = rows.float(), LARGEST[dtype]
    largest = wide.abs().amax(dim=-1, keepdim=True)
    steps = wide * torch.where(largest > 0, limit / largest, 0.0)
    kept = (steps + 0.5).floor() if dtype is torch.int8 else steps
    return kept.to(dtype), (largest * (1 / limit)).squeeze(-1)


def dequantise(kept: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The rows again, in `dtype`."""
    return (kept.float() * scales.unsqueeze(-1)).to(dtype)
