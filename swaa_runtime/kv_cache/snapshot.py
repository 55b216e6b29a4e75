"""KV state of a request as plain tensors: what a session keeps between turns, independent of block ids and sizes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from swaa_runtime.kv_cache.slices import SliceKey
from swaa_runtime.kv_cache.storage import KVStorage
from swaa_runtime.request import Request


@dataclass(frozen=True, slots=True)
class KVSlice:
    """One part of the state. `data` is [len(layers), 2 (K, V), stop - start, num_kv_heads, head_dim], on the CPU."""

    key: SliceKey
    data: torch.Tensor


def export_slices(request: Request, storage: KVStorage, keys: Iterable[SliceKey]) -> list[KVSlice]:
    """Copy parts of a request's state out of the pool, to the CPU."""
    slices = []
    for key in keys:
        parts = [storage.gather(request.block_tables[layer], key.start, key.stop) for layer in key.layers]
        data = torch.stack([torch.stack(part) for part in parts]).to("cpu")
        slices.append(KVSlice(key, data))
    return slices
