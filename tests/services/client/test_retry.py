"""When a call is tried again, for any policy and any error."""

from __future__ import annotations

import random
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from services.client import Busy, ClientError, NotFound, Overloaded, Retry, ServerError, Unavailable
from services.client.retry import Repeat

errors = st.sampled_from([Busy("b"), NotFound("n"), ServerError("s"), Unavailable("u"), Overloaded("o")]) | st.builds(
    Overloaded, st.just("o"), st.none(), st.floats(0, 100)
)
retries = st.builds(
    Retry,
    max_attempts=st.integers(1, 8),
    first_wait_s=st.floats(0.001, 1),
    max_wait_s=st.floats(0.001, 10),
    max_retry_after_s=st.floats(0, 100),
)
repeats = st.sampled_from(get_args(Repeat))


@given(retries, errors, st.integers(1, 10), st.none() | st.floats(-1, 100), repeats, st.integers(0, 99))
def test_a_wait_is_bounded_and_only_for_what_may_be_repeated(
    retry: Retry, error: ClientError, attempt: int, remaining_s: float | None, repeat: Repeat, seed: int
) -> None:
    wait_s = retry.wait_s(error, attempt, remaining_s, repeat, random.Random(seed))
    asked_s = error.retry_after_s if isinstance(error, Overloaded) else None
    refused = isinstance(error, Busy) or asked_s is not None
    may = attempt < retry.max_attempts and (
        (refused and repeat != "never") or (isinstance(error, Unavailable) and repeat == "always")
    )
    if wait_s is None:
        too_long = asked_s is not None and asked_s > retry.max_retry_after_s
        longest_s = min(retry.max_wait_s, retry.first_wait_s * 2 ** (attempt - 1)) + (asked_s or 0.0)
        assert not may or too_long or (remaining_s is not None and longest_s >= remaining_s)
        return
    assert may
    assert (asked_s or 0.0) <= wait_s <= (asked_s or 0.0) + retry.max_wait_s
    assert remaining_s is None or wait_s < remaining_s


@given(retries, st.integers(1, 8), st.integers(0, 99))
def test_waits_grow(retry: Retry, attempt: int, seed: int) -> None:
    earlier = retry.wait_s(Busy("b"), attempt, None, "always", random.Random(seed))
    later = retry.wait_s(Busy("b"), attempt + 1, None, "always", random.Random(seed))
    assert later is None or (earlier is not None and earlier <= later)
