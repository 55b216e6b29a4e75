"""KV state of a request as plain tensors: what a session keeps between turns, independent of block ids and sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from swaa_runtime.kv_cache.block_pool import NULL_BLOCK
from swaa_runtime.kv_cache.manager import KVCacheManager
from swaa_runtime.kv_cache.slices import SliceKey
from swaa_runtime.kv_cache.storage import KVStorage, slot_ids
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


def import_slices(
    request: Request, manager: KVCacheManager, storage: KVStorage, slices: Sequence[KVSlice], num_tokens: int
) -> None:
    """Put a saved state of `num_tokens` tokens into freshly allocated blocks of an admitted request.

    What a block holds beside the restored tokens is zeroed: a former owner's NaN would outlast a mask (0 x NaN is NaN).
    """
    size = manager.block_size_tokens
    blocks: list[set[int]] = [set() for _ in request.rules]
    for part in slices:
        covered = range(part.key.start // size, -(-part.key.stop // size))
        for layer in part.key.layers:
            blocks[layer].update(covered)
    for layer, present in enumerate(blocks):
        manager.place(request, layer, present, num_tokens)
        storage.fill([block for block in request.block_tables[layer] if block != NULL_BLOCK], 0.0)
    for part in slices:
        for layer, (keys, values) in zip(part.key.layers, part.data.to(storage.keys.device), strict=True):
            slots = slot_ids(request.block_tables[layer], part.key.start, part.key.stop, size)
            storage.write(torch.from_numpy(slots).to(storage.keys.device), keys, values)
    request.num_computed_tokens = request.num_restored_tokens = num_tokens
