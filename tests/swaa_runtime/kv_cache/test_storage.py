from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swaa_runtime.config import KVDtypeName
from swaa_runtime.kv_cache.storage import KVStorage, slot_ids
from swaa_runtime.shape import ModelShape

CPU = torch.device("cpu")
BLOCK = 4


def build_storage(dtype: torch.dtype = torch.float32) -> KVStorage:
    return KVStorage(12, BLOCK, 2, 3, dtype, CPU)


def rows(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(seed))


def write(storage: KVStorage, table: list[int], start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
    slots = slot_ids(table, start, start + keys.shape[0], storage.block_size_tokens)
    storage.write(torch.from_numpy(slots), keys, values)


def test_slots_are_block_times_size_plus_offset() -> None:
    assert slot_ids([5, 2, 9], 2, 10, BLOCK).tolist() == [22, 23, 8, 9, 10, 11, 36, 37]


@given(st.permutations(range(1, 8)), st.integers(0, 27), st.integers(1, 28))
def test_what_was_written_is_gathered(table: list[int], start: int, count: int) -> None:
    stop = min(start + count, 28)
    storage = build_storage()
    keys, values = rows(28), rows(28, seed=1)
    write(storage, table, 0, keys, values)
    got_keys, got_values = storage.gather(table, start, stop)
    assert torch.equal(got_keys, keys[start:stop])
    assert torch.equal(got_values, values[start:stop])


def test_consecutive_blocks_are_read_in_place_and_others_copied() -> None:
    storage = build_storage()
    in_place, _ = storage.gather([3, 4, 5], 1, 11)
    copied, _ = storage.gather([3, 5, 4], 1, 11)
    storage.fill([3, 4, 5], 7.0)
    assert bool((in_place == 7).all())
    assert bool((copied == 0).all())


@pytest.mark.parametrize("table", [[0], [0, 0], [0, 1], [1, 0]])
def test_freed_blocks_read_as_zeros(table: list[int]) -> None:
    storage = build_storage()
    storage.fill([1], 1.0)
    keys, values = storage.gather(table, 0, BLOCK * len(table))
    for index, block in enumerate(table):
        part = slice(index * BLOCK, (index + 1) * BLOCK)
        assert bool((keys[part] == block).all())
        assert bool((values[part] == block).all())


def test_writing_touches_nothing_else() -> None:
    storage = build_storage()
    write(storage, [2, 3], 3, rows(2), rows(2))
    touched = (storage.keys != 0).flatten(0, 1).flatten(1).any(dim=1).nonzero().flatten()
    assert touched.tolist() == [2 * BLOCK + 3, 3 * BLOCK]


def test_filling_touches_nothing_else() -> None:
    storage = build_storage()
    storage.fill([2, 5], float("nan"))
    assert storage.keys.isnan().flatten(1).all(dim=1).nonzero().flatten().tolist() == [2, 5]
    assert storage.values.isnan().flatten(1).any(dim=1).nonzero().flatten().tolist() == [2, 5]


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_sizes_in_bytes(dtype: torch.dtype, size: int) -> None:
    storage = build_storage(dtype)
    assert storage.bytes_per_token_layer == 2 * 2 * 3 * size
    assert storage.bytes_per_block == BLOCK * storage.bytes_per_token_layer
    assert storage.keys.nbytes + storage.values.nbytes == 12 * storage.bytes_per_block


QUANTISED: list[KVDtypeName] = ["int8", "fp8"]


def quantised_storage(kv_dtype: KVDtypeName) -> KVStorage:
    return KVStorage(12, BLOCK, 2, 3, torch.bfloat16, CPU, kv_dtype)


@pytest.mark.parametrize("kv_dtype", QUANTISED)
@given(table=st.permutations(range(1, 8)), start=st.integers(0, 27), count=st.integers(1, 28))
def test_8_bits_are_read_as_the_models_dtype(kv_dtype: KVDtypeName, table: list[int], start: int, count: int) -> None:
    """Within what 8 bits cost; and what is read, written again, reads the same."""
    stop = min(start + count, 28)
    storage, second = quantised_storage(kv_dtype), quantised_storage(kv_dtype)
    keys, values = rows(28).bfloat16(), rows(28, seed=1).bfloat16()
    write(storage, table, 0, keys, values)
    read = storage.gather(table, start, stop)
    for got, want in zip(read, (keys[start:stop], values[start:stop]), strict=True):
        assert got.dtype == torch.bfloat16
        assert bool(((got - want).abs() <= 0.07 * want.abs().amax(-1, keepdim=True)).all())
    write(second, table, start, *read)
    for got, want in zip(second.gather(table, start, stop), read, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("kv_dtype", QUANTISED)
def test_8_bits_are_filled_with_anything(kv_dtype: KVDtypeName) -> None:
    storage = quantised_storage(kv_dtype)
    for value in (float("nan"), 7.0, 0.0):
        storage.fill([2, 5], value)
        for got in storage.gather([2, 5], 0, 2 * BLOCK):
            assert torch.equal(got, torch.full_like(got, value)) or (value != value and got.isnan().all())
    keys, values = storage.gather([3, 1], 0, 2 * BLOCK)
    assert not keys.any()
    assert not values.any()


@pytest.mark.parametrize("kv_dtype", QUANTISED)
def test_8_bits_take_half_the_memory_but_for_their_scales(kv_dtype: KVDtypeName) -> None:
    storage = quantised_storage(kv_dtype)
    shape = ModelShape(1, 4, 2, 3, 64, 100, "bfloat16")
    assert storage.bytes_per_block == BLOCK * 2 * 2 * (3 + 4) == BLOCK * shape.pool_bytes_per_token_layer(kv_dtype)
    assert storage.bytes_per_token_layer == 2 * 2 * 3 * 2 == shape.pool_bytes_per_token_layer("model")
