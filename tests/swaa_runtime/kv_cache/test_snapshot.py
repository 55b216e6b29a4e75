from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa_runtime.kv_cache.manager import KVCacheManager
from swaa_runtime.kv_cache.snapshot import (
    SLICE_TARGET_BYTES,
    SLICE_TOKENS,
    KVSlice,
    SliceKey,
    export_slices,
    import_slices,
    needed_slices,
)
from swaa_runtime.kv_cache.storage import KVStorage, slot_ids
from swaa_runtime.recipe import LayerRule
from swaa_runtime.request import Request
from swaa_runtime.visibility import Turn, visible
from tests.swaa_runtime.builders import NAN, admitted, integer_request
from tests.swaa_runtime.strategies import layer_rules

LENGTHS = st.one_of(st.integers(1, 60), st.sampled_from([255, 256, 257, 511, 512, 513, 700]))
SOME_BYTES = 1536


def covered(keys: list[SliceKey], layer: int) -> list[int]:
    return [token for key in keys if layer in key.layers for token in range(key.start, key.stop)]


def seen_by_a_next_turn(rule: LayerRule, num_tokens: int) -> set[int]:
    """Keys seen by what follows: the generated token not computed yet, and a next turn's prompt and decode."""
    timelines = [
        (Turn(0, 1, num_tokens + 1), Turn(num_tokens + 1, num_tokens + 1 + length, num_tokens + length + 40))
        for length in (1, 35)
    ]
    return {
        key
        for key in range(num_tokens)
        for timeline in timelines
        if any(visible(rule, timeline, query, key) for query in range(num_tokens, num_tokens + 38))
    }


@given(st.lists(layer_rules(), min_size=1, max_size=4), st.integers(1, 60), st.sampled_from([8, SOME_BYTES, 1 << 20]))
def test_exactly_what_a_later_query_can_see_is_kept_and_nothing_twice(
    rules: list[LayerRule], num_tokens: int, bytes_per_token_layer: int
) -> None:
    keys = needed_slices(rules, num_tokens, bytes_per_token_layer)
    for layer, rule in enumerate(rules):
        tokens = covered(keys, layer)
        assert len(tokens) == len(set(tokens))
        assert set(tokens) == seen_by_a_next_turn(rule, num_tokens)
    assert all(key.start < key.stop for key in keys)


@given(st.lists(layer_rules(), min_size=1, max_size=4), LENGTHS, st.integers(1, 600))
def test_a_later_turn_leaves_full_slices_as_they_are(rules: list[LayerRule], num_tokens: int, more: int) -> None:
    keeps_all = {layer for layer, rule in enumerate(rules) if rule.window is None or rule.looks_back}
    before = needed_slices(rules, num_tokens, SOME_BYTES)
    after = set(needed_slices(rules, num_tokens + more, SOME_BYTES))
    full = [key for key in before if set(key.layers) <= keeps_all and key.stop % SLICE_TOKENS == 0]
    assert set(full) <= after
    for layer in keeps_all:
        aligned = sum(key.stop - key.start for key in full if layer in key.layers)
        assert aligned == num_tokens // SLICE_TOKENS * SLICE_TOKENS, "only the last slice may be short"


def test_slices_stay_near_their_target_size() -> None:
    keys = needed_slices([LayerRule()] * 30, 1000, SOME_BYTES)
    sizes = [len(key.layers) * (key.stop - key.start) * SOME_BYTES for key in keys]
    assert max(sizes) <= SLICE_TARGET_BYTES
    assert max(sizes) > SLICE_TARGET_BYTES // 2


def test_layers_larger_than_the_target_still_get_a_slice_each() -> None:
    keys = needed_slices([LayerRule()] * 2, 10, 1 << 30)
    assert [key.layers for key in keys] == [(0,), (1,)]


class Side:
    """One engine's memory: a pool with its tensors, all NaN but the null block."""

    def __init__(self, block_size: int, dtype: torch.dtype) -> None:
        self.manager = KVCacheManager(1000, block_size, 16)
        self.storage = KVStorage(1000, block_size, 2, 3, dtype, torch.device("cpu"))
        self.storage.fill(range(1, 1000), NAN)

    def admit(self, rules: list[LayerRule], num_tokens: int) -> Request:
        turns = [Turn(0, 1, num_tokens + 1), Turn(num_tokens + 1, num_tokens + 5)]
        return admitted(self.manager, integer_request(rules, turns, 4, continues=True))

    def write_all(self, request: Request, data: torch.Tensor) -> None:
        """data: [layers, 2, tokens, heads, dim]"""
        self.manager.extend(request, data.shape[2])
        for table, (keys, values) in zip(request.block_tables, data, strict=True):
            slots = torch.from_numpy(slot_ids(table, 0, data.shape[2], self.manager.block_size_tokens))
            self.storage.write(slots, keys, values)
        request.num_computed_tokens = data.shape[2]


@settings(max_examples=80)
@given(
    st.lists(layer_rules(), min_size=1, max_size=4),
    st.one_of(st.integers(1, 60), st.sampled_from([256, 300])),
    st.tuples(st.integers(3, 9), st.integers(3, 9)),
    st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_a_state_survives_export_and_import_bit_for_bit(
    rules: list[LayerRule], num_tokens: int, block_sizes: tuple[int, int], dtype: torch.dtype
) -> None:
    data = torch.randn(len(rules), 2, num_tokens, 2, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    source, target = Side(block_sizes[0], dtype), Side(block_sizes[1], dtype)
    request = source.admit(rules, num_tokens)
    source.write_all(request, data)
    source.manager.release_unseen(request)
    keys = needed_slices(rules, num_tokens, source.storage.bytes_per_token_layer)
    slices = export_slices(request, source.storage, keys)
    for part in slices:
        want = data[list(part.key.layers), :, part.key.start : part.key.stop]
        assert torch.equal(part.data, want)

    again = target.admit(rules, num_tokens)
    import_slices(again, target.manager, target.storage, slices, num_tokens)
    target.manager.check_integrity([again])
    assert again.num_computed_tokens == again.num_restored_tokens == num_tokens
    for before, after in zip(slices, export_slices(again, target.storage, keys), strict=True):
        assert after.data.dtype == dtype
        assert torch.equal(before.data, after.data)


def test_an_exported_slice_is_a_copy() -> None:
    side = Side(4, torch.float32)
    request = side.admit([LayerRule()], 8)
    side.write_all(request, torch.ones(1, 2, 8, 2, 3))
    [part] = export_slices(request, side.storage, [SliceKey((0,), 0, 8)])
    side.storage.fill(request.block_tables[0], NAN)
    assert bool((part.data == 1).all())


@pytest.mark.parametrize("rule", [LayerRule(6, 3), LayerRule(1), LayerRule(1, 5)])
def test_restored_blocks_hold_no_garbage_beside_what_was_restored(rule: LayerRule) -> None:
    """A dense backend multiplies what it does not see by zero, and zero times the NaN of a former owner is NaN."""
    side = Side(8, torch.float32)
    request = side.admit([rule], 20)
    parts = [KVSlice(key, torch.ones(1, 2, key.stop - key.start, 2, 3)) for key in needed_slices([rule], 20, 48)]
    import_slices(request, side.manager, side.storage, parts, 20)
    keys, values = side.storage.gather(request.block_tables[0], 0, 20)
    assert bool(keys.isfinite().all())
    assert bool(values.isfinite().all())
