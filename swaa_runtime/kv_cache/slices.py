"""Which parts of a KV state a session keeps, and how they are cut. Needs no torch.

A slice is some layers' K and V of consecutive tokens. Layers that keep everything are cut at multiples of SLICE_TOKENS,
so that a later turn leaves the earlier slices alone; layers that keep sinks and a window have one slice of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from swaa_runtime.recipe import LayerRule
from swaa_runtime.visibility import first_needed, keeps_everything

if TYPE_CHECKING:  # gateways count and name slices without torch
    import torch

SLICE_TOKENS = 64
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
    return _slices(rules, num_tokens, keeps_whole_history, bytes_per_token_layer)


def resident_slices(
    rules: Sequence[LayerRule], num_tokens: int, prompt_stop: int, continues: bool, bytes_per_token_layer: int
) -> list[SliceKey]:
    """What must be kept of `num_tokens` computed tokens for this very turn to go on (see `keeps_everything`)."""

    def keeps(rule: LayerRule) -> bool:
        return keeps_everything(rule, num_tokens, prompt_stop, continues)

    return _slices(rules, num_tokens, keeps, bytes_per_token_layer)


def _slices(
    rules: Sequence[LayerRule], num_tokens: int, keeps: Callable[[LayerRule], bool], bytes_per_token_layer: int
) -> list[SliceKey]:
    groups: dict[LayerRule, list[int]] = {}
    for layer, rule in enumerate(rules):
        groups.setdefault(rule, []).append(layer)
    keys: list[SliceKey] = []
    for rule, layers in groups.items():
        for start, stop in _needed_ranges(rule, num_tokens, keeps(rule)):
            per_slice = max(1, SLICE_TARGET_BYTES // (bytes_per_token_layer * SLICE_TOKENS))
            keys += [SliceKey(tuple(some), start, stop) for some in _batched(layers, per_slice)]
    return keys


def keeps_whole_history(rule: LayerRule) -> bool:
    """Whether a session keeps every token's KV of such a layer, as some later query may see it all."""
    return keeps_everything(rule, 0, 0, True)


def state_bytes(rules: Sequence[LayerRule], num_tokens: int, bytes_per_token_layer: int) -> int:
    """Bytes of the state that `needed_slices` describes."""
    tokens = sum(
        stop - start for rule in rules for start, stop in _needed_ranges(rule, num_tokens, keeps_whole_history(rule))
    )
    return tokens * bytes_per_token_layer


def _needed_ranges(rule: LayerRule, num_tokens: int, keeps_all: bool) -> list[tuple[int, int]]:
    if keeps_all:
        edges = [*range(0, num_tokens, SLICE_TOKENS), num_tokens]
        return list(pairwise(edges))
    ranges = [(0, min(rule.sink_tokens, num_tokens)), (first_needed(rule, num_tokens, False), num_tokens)]
    return [(start, stop) for start, stop in ranges if start < stop]


def _batched(layers: list[int], size: int) -> list[list[int]]:
    return [layers[at : at + size] for at in range(0, len(layers), size)]
