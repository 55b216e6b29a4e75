from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swaa_runtime.errors import IntegrityError, OutOfCapacity
from swaa_runtime.kv_cache.block_pool import NULL_BLOCK, BlockPool


def test_hands_out_every_block_but_the_null_block_once() -> None:
    pool = BlockPool(6)
    assert sorted(pool.allocate() for _ in range(5)) == [1, 2, 3, 4, 5]
    assert (pool.num_free_blocks, pool.num_used_blocks) == (0, 5)


def test_an_empty_pool_refuses() -> None:
    pool = BlockPool(2)
    pool.allocate()
    with pytest.raises(OutOfCapacity, match="1 blocks"):
        pool.allocate()


def test_tables_that_grow_alone_are_consecutive() -> None:
    pool = BlockPool(10)
    table = [pool.allocate()]
    for _ in range(4):
        table.append(pool.allocate(after=table[-1]))
    assert table == list(range(table[0], table[0] + 5))


def test_takes_another_block_when_the_next_one_is_taken_or_does_not_exist() -> None:
    pool = BlockPool(4)
    first = pool.allocate()
    taken = pool.allocate(after=first)
    other = pool.allocate(after=first)
    assert len({first, taken, other}) == 3
    pool.free(first)
    assert pool.allocate(after=3) == first


@pytest.mark.parametrize("block", [NULL_BLOCK, -1, 4, 99, 2])
def test_only_a_block_in_use_can_be_freed(block: int) -> None:
    pool = BlockPool(4)
    held = pool.allocate()
    assert held != 2
    with pytest.raises(IntegrityError, match=str(block)):
        pool.free(block)


def test_a_block_cannot_be_freed_twice() -> None:
    pool = BlockPool(4)
    block = pool.allocate()
    pool.free(block)
    with pytest.raises(IntegrityError):
        pool.free(block)


@given(st.lists(st.one_of(st.none(), st.integers(0, 30)), max_size=60))
def test_free_and_used_always_make_up_the_pool(actions: list[int | None]) -> None:
    """None frees the oldest block held; a number allocates after it."""
    pool = BlockPool(12)
    held: list[int] = []
    for action in actions:
        if action is None and held:
            pool.free(held.pop(0))
        elif action is not None and pool.num_free_blocks:
            block = pool.allocate(after=action)
            assert 0 < block < 12
            assert block not in held
            held.append(block)
        assert pool.num_used_blocks == len(held)
        assert pool.num_free_blocks == 11 - len(held)
