"""How many bytes a slice of KV takes in each format: what a reader checks before it takes memory. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from services.sessions.store import KVFormat
from swaa_runtime.kv_cache.slices import SliceKey

MARK_BYTES = 4
"""At the head of lossy formats, which are equally long: one is not to be read as the other."""

SCALE_BYTES = 4
"""Of the float32 scale that lossy formats store for each vector."""


def slice_shape(key: SliceKey, num_kv_heads: int, head_dim: int) -> tuple[int, int, int, int, int]:
    """The shape of a slice's tensor: layers, K and V, tokens, heads, elements."""
    return len(key.layers), 2, key.stop - key.start, num_kv_heads, head_dim


def stored_bytes(shape: Sequence[int], element_bytes: int, kv_format: KVFormat) -> int:
    """How many bytes such a tensor is stored in: exactly, but for zstd, where it is the most that they can be."""
    elements = math.prod(shape)
    match kv_format:
        case "raw":
            return elements * element_bytes
        case "zstd":
            return _compress_bound(elements * element_bytes)
        case "int8" | "fp8":
            return MARK_BYTES + math.prod(shape[:-1]) * SCALE_BYTES + elements


def _compress_bound(num_bytes: int) -> int:
    """ZSTD_COMPRESSBOUND of zstd.h, which the Python package does not offer."""
    small = 128 << 10
    return num_bytes + (num_bytes >> 8) + max(0, small - num_bytes >> 11)
