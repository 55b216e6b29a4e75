from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.sessions.batching import batched_by_bytes


@given(st.lists(st.integers(0, 30)), st.integers(1, 40))
def test_all_in_order_and_no_batch_larger_than_it_must_be(sizes: list[int], max_bytes: int) -> None:
    batches = list(batched_by_bytes(list(enumerate(sizes)), max_bytes))
    assert [] not in batches
    assert [item for batch in batches for item in batch] == list(range(len(sizes)))
    for batch in batches:
        assert len(batch) == 1 or sum(sizes[item] for item in batch) <= max_bytes
    for batch, following in pairwise(batches):
        assert sum(sizes[item] for item in batch) + sizes[following[0]] > max_bytes, "one more would have fitted"
