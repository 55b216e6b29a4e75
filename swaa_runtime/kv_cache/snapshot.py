"""KV state of a request as plain tensors: what a session keeps between turns, independent of block ids and sizes."""

from __future__ import annotations

from collections.abc import Iterable

from swaa_runtime.kv_cache.slices import KVSlice, SliceKey
from swaa_runtime.kv_cache.storage import StateMemory
from swaa_runtime.request import Request


def export_slices(request: Request, storage: StateMemory, keys: Iterable[SliceKey]) -> list[KVSlice]:
    """Copy parts of a request's state out of the pool, to the CPU."""
    slices = []
    for key in keys:
        tables = [request.block_tables[layer] for layer in key.layers]
        slices.append(KVSlice(key, storage.read(tables, key.start, key.stop)))
    return slices
