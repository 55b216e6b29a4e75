"""KV state of a request as plain tensors: what a session keeps between turns, independent of block ids and sizes."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from swaa_runtime.kv_cache.slices import KVSlice, SliceKey
from swaa_runtime.kv_cache.storage import KVStorage
from swaa_runtime.request import Request


def export_slices(request: Request, storage: KVStorage, keys: Iterable[SliceKey]) -> list[KVSlice]:
    """Copy parts of a request's state out of the pool, to the CPU."""
    slices = []
    for key in keys:
        parts = [storage.gather(request.block_tables[layer], key.start, key.stop) for layer in key.layers]
        data = torch.stack([torch.stack(part) for part in parts]).to("cpu")
        slices.append(KVSlice(key, data))
    return slices
