from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from swaa_runtime.urgency import SLACK_GRAIN_MS, grain, slack_ms, urgency
from tests.swaa_runtime.builders import build_request


def test_slack_is_the_time_left_beyond_the_work_left() -> None:
    assert slack_ms(due_s=12.0, now_s=10.0, remaining_ms=500.0) == 1500.0
    assert slack_ms(due_s=10.1, now_s=10.0, remaining_ms=500.0) < 0
    assert slack_ms(due_s=None, now_s=10.0, remaining_ms=500.0) == math.inf


def order(*requests: tuple[str, float, int, float]) -> str:
    """Names in order of urgency of (name, slack, priority, arrival)."""
    built = [(build_request(name, 1, priority=priority), slack, at) for name, slack, priority, at in requests]
    for request, _, at in built:
        request.arrival_s = at
    return "".join(request.request_id for request, slack, _ in sorted(built, key=lambda item: urgency(*item[:2])))


def test_least_slack_first_then_those_without_a_due_time_then_the_late_ones() -> None:
    assert order(("l", -1.0, 9, 0.0), ("n", math.inf, 9, 0.0), ("b", 500.0, 9, 0.0), ("a", 0.0, 0, 5.0)) == "abnl"


def test_late_ones_go_by_priority_then_arrival_however_late_they_are() -> None:
    assert order(("c", -900.0, 0, 2.0), ("b", -1.0, 0, 1.0), ("a", -5.0, 1, 3.0)) == "abc"


def test_equal_slack_goes_by_priority_then_arrival() -> None:
    assert order(("c", 7.0, 0, 2.0), ("b", 7.0, 0, 1.0), ("a", 7.0, 1, 3.0)) == "abc"
    assert order(("c", 1.0, 0, 2.0), ("b", 0.9 * SLACK_GRAIN_MS, 0, 1.0)) == "bc", "nearly equal is a tie"
    assert order(("c", math.inf, 0, 2.0), ("b", math.inf, 0, 1.0), ("a", math.inf, 1, 3.0)) == "abc"


def test_the_more_slack_there_is_the_more_of_it_is_a_tie() -> None:
    bounds = [SLACK_GRAIN_MS * factor for factor in (1, 2, 4, 8, 256)]
    assert [grain(bound - 1e-6) for bound in bounds] == [0.0, 1.0, 2.0, 3.0, 8.0]
    assert [grain(bound) for bound in bounds] == [1.0, 2.0, 3.0, 4.0, 9.0]
    assert grain(math.inf) == math.inf
    assert grain(-1.0) == 0.0
    assert order(("c", 90_000.0, 0, 2.0), ("b", 100_000.0, 0, 1.0)) == "bc", "a promise to whoever came first holds"
    assert order(("c", 2_000.0, 0, 2.0), ("b", 12_000.0, 0, 1.0)) == "cb", "who needs it goes before it"


@given(st.floats(0, 1e6), st.floats(-1e6, -1e-3), st.integers(-5, 5), st.integers(-5, 5))
def test_nobody_late_goes_before_anybody_who_is_not(slack: float, late: float, high: int, low: int) -> None:
    assert order(("l", late, high, 0.0), ("t", slack, low, 1.0)) == "tl"
