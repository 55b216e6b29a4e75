from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa_runtime.config import KVDtypeName
from swaa_runtime.kv_cache.manager import KVCacheManager
from swaa_runtime.kv_cache.restore import Restore
from swaa_runtime.kv_cache.slices import KVSlice, SliceKey, needed_slices
from swaa_runtime.kv_cache.snapshot import export_slices
from swaa_runtime.kv_cache.storage import KVStorage, slot_ids
from swaa_runtime.recipe import LayerRule
from swaa_runtime.request import Request
from swaa_runtime.visibility import Turn
from tests.swaa_runtime.builders import NAN, admitted, integer_request
from tests.swaa_runtime.strategies import layer_rules


class Side:
    """One engine's memory: a pool with its tensors, all NaN but the null block."""

    def __init__(self, block_size: int, dtype: torch.dtype, kv_dtype: KVDtypeName = "model") -> None:
        self.manager = KVCacheManager(1000, block_size, 16)
        self.storage = KVStorage(1000, block_size, 2, 3, dtype, torch.device("cpu"), kv_dtype)
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


def restore_all(side: Side, request: Request, slices: list[KVSlice], num_tokens: int) -> None:
    restore = Restore(num_tokens, [part.key for part in slices])
    restore.begin(request, side.manager, side.storage)
    restore.add(slices)
    assert restore.advance(request, side.manager, side.storage) == []


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
    restore_all(target, again, slices, num_tokens)
    target.manager.check_integrity([again])
    assert again.num_computed_tokens == again.num_restored_tokens == num_tokens
    for before, after in zip(slices, export_slices(again, target.storage, keys), strict=True):
        assert after.data.dtype == dtype
        assert torch.equal(before.data, after.data)


@pytest.mark.parametrize("kv_dtype", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_state_of_8_bits_comes_back_as_it_left(kv_dtype: KVDtypeName, dtype: torch.dtype) -> None:
    """It leaves in the model's dtype, and is read as that on the other side."""
    rules = [LayerRule(), LayerRule(9, 3)]
    data = torch.randn(2, 2, 50, 2, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    source, target = Side(8, dtype, kv_dtype), Side(16, dtype, kv_dtype)
    request, again = source.admit(rules, 50), target.admit(rules, 50)
    source.write_all(request, data)
    source.manager.release_unseen(request)
    keys = needed_slices(rules, 50, source.storage.bytes_per_token_layer)
    slices = export_slices(request, source.storage, keys)
    restore_all(target, again, slices, 50)
    for before, after in zip(slices, export_slices(again, target.storage, keys), strict=True):
        want = data[list(before.key.layers), :, before.key.start : before.key.stop].float()
        assert before.data.dtype == dtype
        assert float((before.data.float() - want).norm() / want.norm()) < 0.05
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
    restore_all(side, request, parts, 20)
    keys, values = side.storage.gather(request.block_tables[0], 0, 20)
    assert bool(keys.isfinite().all())
    assert bool(values.isfinite().all())
