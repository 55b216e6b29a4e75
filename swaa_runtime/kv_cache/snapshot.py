"""KV state of a request as plain tensors: what a session keeps between turns, independent of block ids and sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from swaa_runtime.kv_cache.block_pool import NULL_BLOCK
from swaa_runtime.kv_cache.manager import KVCacheManager
from swaa_runtime.kv_cache.storage import KVStorage, slot_ids
from swaa_runtime.recipe import LayerRule
from swaa_runtime.request import Request
from swaa_runtime.visibility import first_needed, keeps_everything

SLICE_TOKENS = 256
"""Slices of layers that keep everything are cut at multiples of this: a later turn leaves the earlier ones alone."""

SLICE_TARGET_BYTES = 4 << 20
"""Layers are put together into one slice up to about this size."""


@dataclass(frozen=True, slots=True)
class SliceKey:
    """Which part of the state: some layers' K and V of tokens [start, stop)."""

    layers: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class KVSlice:
    """One part of the state. `data` is [len(layers), 2 (K, V), stop - start, num_kv_heads, head_dim], on the CPU."""

    key: SliceKey
    data: torch.Tensor


def needed_slices(rules: Sequence[LayerRule], num_tokens: int, bytes_per_token_layer: int) -> list[SliceKey]:
    """What must be kept of `num_tokens` computed tokens for another turn to follow: nothing more, nothing twice."""
    groups: dict[LayerRule, list[int]] = {}
    for layer, rule in enumerate(rules):
        groups.setdefault(rule, []).append(layer)
    keys: list[SliceKey] = []
    for rule, layers in groups.items():
        for start, stop in _needed_ranges(rule, num_tokens):
            per_slice = max(1, SLICE_TARGET_BYTES // (bytes_per_token_layer * SLICE_TOKENS))
            keys += [SliceKey(tuple(some), start, stop) for some in _batched(layers, per_slice)]
    return keys


def _needed_ranges(rule: LayerRule, num_tokens: int) -> list[tuple[int, int]]:
    if keeps_everything(rule, num_tokens, num_tokens, True):
        edges = [*range(0, num_tokens, SLICE_TOKENS), num_tokens]
        return list(pairwise(edges))
    ranges = [(0, min(rule.sink_tokens, num_tokens)), (first_needed(rule, num_tokens, False), num_tokens)]
    return [(start, stop) for start, stop in ranges if start < stop]


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


def _batched(layers: list[int], size: int) -> list[list[int]]:
    return [layers[at : at + size] for at in range(0, len(layers), size)]
