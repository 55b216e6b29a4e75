"""Slices of KV as the bytes of segments, and back. Needs torch, unlike the rest of what sessions are made of."""

from __future__ import annotations

import torch

from services.errors import SessionCorrupt
from services.sessions.kv_format import pack, unpack
from services.sessions.kv_sizes import slice_shape
from services.sessions.store import KVFormat, SegmentRef
from swaa_runtime.kv_cache.slices import KVSlice


def encode_slice(part: KVSlice, kv_format: KVFormat = "raw") -> memoryview | bytes:
    """The slice's bytes. Raw ones are its tensor's own memory where that is contiguous: valid until it is written."""
    return pack(part.data, kv_format)


def decode_slice(
    ref: SegmentRef,
    data: bytes,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    kv_format: KVFormat = "raw",
) -> KVSlice:
    """The slice that `ref` describes. Its memory may be that of `data`: it is not to be written.

    Args:
        data: bytes whose digest the store has checked.
        num_kv_heads, head_dim, dtype: the model's.

    Raises:
        SessionCorrupt: if `data` is not what `encode_slice` makes of such a slice, before memory is taken for it; or if
            an infinity or a NaN is in it, which no model writes and whoever sends a file may.
    """
    try:
        values = unpack(data, slice_shape(ref.key, num_kv_heads, head_dim), dtype, kv_format)
        if not values.sum(dtype=torch.float32).isfinite():
            raise SessionCorrupt("not all values are finite")
        return KVSlice(ref.key, values)
    except SessionCorrupt as exc:
        raise SessionCorrupt(f"segment {ref.segment_id} of {ref.key}: {exc} for this model") from exc
