from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swaa_runtime.errors import IntegrityError, OutOfCapacity
from swaa_runtime.kv_cache.block_pool import NULL_BLOCK
from swaa_runtime.kv_cache.manager import KVCacheManager, layer_block_bound
from swaa_runtime.kv_cache.slices import needed_slices
from swaa_runtime.recipe import LayerRule
from swaa_runtime.request import Request
from swaa_runtime.visibility import Turn, visible
from tests.swaa_runtime.builders import admitted, assert_next_token_has_room, integer_request
from tests.swaa_runtime.strategies import layer_rules


def build_manager(num_blocks: int = 1000, block_size: int = 4, max_step: int = 16) -> KVCacheManager:
    return KVCacheManager(num_blocks, block_size, max_step)


def held(request: Request, layer: int | None = None) -> int:
    tables = request.block_tables if layer is None else [request.block_tables[layer]]
    return sum(1 for table in tables for block in table if block != NULL_BLOCK)


def compute(manager: KVCacheManager, request: Request, chunks: Sequence[int]) -> Iterator[Request]:
    """Run a request through memory as the engine does; yields with each chunk's blocks held, then again after trimming.

    `chunks` are repeated; a decode step is one token.
    """
    step = 0
    while request.num_computed_tokens < request.max_total_tokens:
        known = len(request.token_ids) - request.num_computed_tokens
        count = min(known, chunks[step % len(chunks)], manager.max_step_tokens)
        manager.extend(request, request.num_computed_tokens + count)
        yield request
        request.num_computed_tokens += count
        manager.release_unseen(request)
        yield request
        if request.num_computed_tokens == len(request.token_ids):
            request.token_ids.append(0)
        step += 1


CHUNKS = st.lists(st.integers(1, 16), min_size=1, max_size=4)
BLOCK_SIZES = st.integers(1, 9)


@given(st.lists(layer_rules(), min_size=1, max_size=3), st.integers(1, 80), st.integers(1, 20), CHUNKS, BLOCK_SIZES)
def test_what_is_held_stays_within_bound_and_reservation(
    rules: list[LayerRule], prompt: int, max_tokens: int, chunks: list[int], block_size: int
) -> None:
    manager = build_manager(block_size=block_size)
    request = admitted(manager, integer_request(rules, [Turn(0, prompt)], max_tokens, continues=False))
    for _ in compute(manager, request, chunks):
        manager.check_integrity([request])
        assert_next_token_has_room(request, block_size)
        for layer, rule in enumerate(rules):
            if rule.window is not None and not rule.looks_back:
                assert held(request, layer) <= layer_block_bound(rule, block_size, manager.max_step_tokens)
    manager.free(request)
    manager.check_integrity([])
    assert (manager.pool.num_used_blocks, manager.num_reserved_blocks) == (0, 0)


def test_the_bound_is_reached() -> None:
    """Else a looser bound would pass as well, and admission would waste memory."""
    rule = LayerRule(window=4, sink_tokens=1)
    manager = build_manager(block_size=4, max_step=7)
    request = admitted(manager, integer_request([rule], [Turn(0, 90)], 1, continues=False))
    peak = max(held(request) for _ in compute(manager, request, [7]))
    assert peak == layer_block_bound(rule, 4, 7) == 1 + 3 + 1


def test_a_full_layer_has_no_bound() -> None:
    with pytest.raises(ValueError, match="full layer"):
        layer_block_bound(LayerRule(), 4, 4)


@given(layer_rules(max_window=12), st.integers(1, 40), st.integers(1, 20), CHUNKS, BLOCK_SIZES, st.booleans())
def test_exactly_what_a_later_query_can_see_is_held(
    rule: LayerRule, prompt: int, max_tokens: int, chunks: list[int], block_size: int, continues: bool
) -> None:
    manager = build_manager(block_size=block_size)
    request = admitted(manager, integer_request([rule], [Turn(0, prompt)], max_tokens, continues))
    trimmed = True
    for _ in compute(manager, request, chunks):
        trimmed = not trimmed
        if not trimmed:
            continue
        computed = request.num_computed_tokens
        seen = seen_later(rule, prompt, computed, continues)
        needed = {key // block_size for key in seen}
        present = {index for index, block in enumerate(request.block_tables[0]) if block != NULL_BLOCK}
        being_filled = {computed // block_size} if computed % block_size else set()
        assert needed <= present <= needed | being_filled


def seen_later(rule: LayerRule, prompt: int, computed: int, continues: bool) -> set[int]:
    """Keys below `computed` seen by a query of a generation that goes on, or of a turn that follows at any moment."""
    end = max(computed, prompt)
    timelines: list[tuple[Turn, ...]] = [(Turn(0, prompt),)]
    if continues:
        timelines += [(Turn(0, prompt, stop), Turn(stop, stop + 3)) for stop in range(end + 1, end + 20, 6)]
    return {
        key
        for key in range(computed)
        for timeline in timelines
        if any(visible(rule, timeline, query, key) for query in range(computed, end + 24))
    }


@given(
    st.lists(layer_rules(), min_size=1, max_size=3),
    st.integers(1, 60),
    st.integers(1, 12),
    BLOCK_SIZES,
    CHUNKS,
    st.booleans(),
)
def test_a_restored_request_stays_within_its_reservation_and_never_writes_to_the_null_block(
    rules: list[LayerRule], history: int, max_tokens: int, block_size: int, chunks: list[int], continues: bool
) -> None:
    manager = build_manager(block_size=block_size)
    turns = [Turn(0, 1, history + 1), Turn(history + 1, history + 9)]
    request = admitted(manager, integer_request(rules, turns, max_tokens, continues))
    for layer, rule in enumerate(rules):
        keys = needed_slices([rule], history, bytes_per_token_layer=8)
        present = {b for key in keys for b in range(key.start // block_size, -(-key.stop // block_size))}
        manager.place(request, layer, present, history)
    request.num_computed_tokens = history
    assert_next_token_has_room(request, block_size)
    for _ in compute(manager, request, chunks):
        manager.check_integrity([request])
        assert_next_token_has_room(request, block_size)


def test_the_block_that_the_next_token_goes_to_is_real_though_nothing_in_it_was_restored() -> None:
    """Under a window of one a state is empty: the next token would be written to the null block, which all share."""
    manager = build_manager(block_size=4)
    request = admitted(manager, integer_request([LayerRule(1)], [Turn(0, 5, 7), Turn(7, 9)], 1, continues=False))
    manager.place(request, 0, [], 6)
    manager.extend(request, 7)
    assert [block != NULL_BLOCK for block in request.block_tables[0]] == [False, True]


def test_a_request_that_could_never_fit_is_refused_with_the_numbers() -> None:
    manager = build_manager(num_blocks=11, block_size=4)
    fits = integer_request([LayerRule(), LayerRule()], [Turn(0, 20)], 1, continues=False)
    manager.check_fits(fits)
    with pytest.raises(OutOfCapacity, match="needs 12 KV blocks of 4 tokens, the pool has 10"):
        manager.check_fits(integer_request([LayerRule(), LayerRule()], [Turn(0, 20)], 2, continues=False))


def test_a_sliding_request_of_any_length_fits_where_a_full_one_does_not() -> None:
    manager = build_manager(num_blocks=20, block_size=4, max_step=8)
    manager.check_fits(integer_request([LayerRule(8, 4)], [Turn(0, 1_000_000)], 100, continues=False))
    with pytest.raises(OutOfCapacity):
        manager.check_fits(integer_request([LayerRule()], [Turn(0, 1_000)], 1, continues=False))


@pytest.mark.parametrize(
    ("rule", "continues", "blocks"),
    [
        (LayerRule(), False, 30),
        (LayerRule(8, full_decode=True), False, 30),
        (LayerRule(8, full_tail=2), True, 30),
        (LayerRule(8, full_tail=2), False, 25),
        (LayerRule(8), True, 5 + 1),
    ],
)
def test_what_is_reserved_follows_from_what_may_look_back(rule: LayerRule, continues: bool, blocks: int) -> None:
    manager = build_manager(block_size=4, max_step=13)
    request = admitted(manager, integer_request([rule], [Turn(0, 100)], 21, continues))
    assert manager.num_reserved_blocks == request.num_reserved_blocks == blocks


def test_reserving_stops_where_the_pool_ends() -> None:
    manager = build_manager(num_blocks=11, block_size=4)
    first, second, third = (
        integer_request([LayerRule()], [Turn(0, tokens)], 1, continues=False) for tokens in (24, 20, 16)
    )
    assert manager.reserve(first)
    assert not manager.reserve(second)
    assert manager.num_reserved_blocks == 6
    assert manager.reserve(third)
    manager.free(first)
    assert manager.num_reserved_blocks == 4


def test_freed_blocks_are_reported_and_serve_others() -> None:
    manager = build_manager(num_blocks=8, block_size=4, max_step=4)
    request = admitted(manager, integer_request([LayerRule(1)], [Turn(0, 40)], 1, continues=False))
    freed: list[int] = []
    for start in range(0, 40, 4):
        manager.extend(request, start + 4)
        request.num_computed_tokens = start + 4
        freed += manager.release_unseen(request)
    assert len(freed) == 10, "ten blocks passed through a pool of seven"
    assert held(request) == 0


def test_integrity_notices_a_block_that_nobody_holds() -> None:
    manager = build_manager()
    manager.pool.allocate()
    with pytest.raises(IntegrityError, match="1 blocks are in use, requests hold 0"):
        manager.check_integrity([])


def test_integrity_notices_a_block_held_twice() -> None:
    manager = build_manager()
    request = admitted(manager, integer_request([LayerRule(), LayerRule()], [Turn(0, 4)], 1, continues=False))
    manager.extend(request, 4)
    request.block_tables[1][0] = request.block_tables[0][0]
    with pytest.raises(IntegrityError, match="held twice"):
        manager.check_integrity([request])


def test_integrity_notices_a_request_that_holds_more_than_it_reserved() -> None:
    manager = build_manager()
    request = admitted(manager, integer_request([LayerRule()], [Turn(0, 4)], 1, continues=False))
    manager.extend(request, 5)
    with pytest.raises(IntegrityError, match="holds 2 blocks, reserved 1"):
        manager.check_integrity([request])


def test_integrity_notices_a_reservation_that_nobody_has() -> None:
    manager = build_manager()
    admitted(manager, integer_request([LayerRule()], [Turn(0, 4)], 1, continues=False))
    with pytest.raises(IntegrityError, match="1 blocks are reserved, requests have 0"):
        manager.check_integrity([])
