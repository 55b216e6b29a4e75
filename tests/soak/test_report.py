"""The verdict sees what it should: memory that grows, handles that stay open, faults; and the books see what is off."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.soak.audit import Audit
from tests.soak.idle import Reading
from tests.soak.report import Minute, trend, verdict

NO_COUNTS: Counter[tuple[str, str]] = Counter()


def minute(
    number: int, rss_mib: float = 1000.0, num_files: int = 30, redis_mib: float = 100.0, used: float = 1.05
) -> Minute:
    """`used`: by Redis, per stored byte, of which there are more each minute."""
    stored_mib = 50 + number
    reading = Reading(rss_mib, redis_mib, used * stored_mib, num_files, 20, 0, 100, 0)
    return Minute(number, 1, 1, 0, reading, Audit({}, 0, 0, 0, stored_mib << 20, ()), 1, 0.0, 0)


def test_a_flat_run_is_well() -> None:
    line, wrong = verdict([minute(number) for number in range(10)], [], NO_COUNTS, 384)
    assert not wrong
    assert json.loads(line)["ok"]


def test_memory_may_grow_while_it_warms_up_only() -> None:
    warming = [minute(number, 500.0 + 250 * min(number, 2)) for number in range(10)]
    assert verdict(warming, [], NO_COUNTS, 384)[1] == []
    leaking = [minute(number, 1000.0 + 10 * number) for number in range(10)]
    [wrong] = verdict(leaking, [], NO_COUNTS, 384)[1]
    assert wrong == "the service's memory went from 1020 to 1090 MiB"


def test_too_few_minutes_are_not_judged() -> None:
    assert verdict([minute(1), minute(2, 2000.0)], [], NO_COUNTS, 384)[1] == []


def test_handles_that_stay_open_and_a_redis_that_grows_are_wrong() -> None:
    files = [minute(number, num_files=30 + 2 * number) for number in range(10)]
    assert verdict(files, [], NO_COUNTS, 384)[1] == ["open files went from 34 to 48"]
    redis = [minute(number, redis_mib=600.0) for number in range(10)]
    [wrong] = verdict(redis, [], NO_COUNTS, 384)[1]
    assert wrong.startswith("Redis has 600 MiB")


def test_redis_may_grow_with_what_is_stored_and_not_beyond() -> None:
    leaking = [minute(number, used=1.05 + 0.01 * number) for number in range(10)]
    [wrong] = verdict(leaking, [], NO_COUNTS, 384)[1]
    assert wrong == "what Redis allocates per stored byte went from 1.070 to 1.140 bytes"


def test_a_fault_is_wrong() -> None:
    line, wrong = verdict([minute(1)], ["lost"], NO_COUNTS, 384)
    assert wrong == ["lost"]
    assert not json.loads(line)["ok"]


@given(st.floats(100, 10_000), st.floats(-0.5, 2.0), st.integers(5, 40))
def test_a_change_is_told_as_large_as_it_is(start: float, change: float, num_minutes: int) -> None:
    found = trend([start * (1 + change * number / (num_minutes - 1)) for number in range(num_minutes)])
    assert found.change == pytest.approx(change, abs=1e-6)
    assert found.flat == (abs(found.change) <= 0.03)


def test_swings_are_no_change() -> None:
    swinging = [minute(number, 1000.0 + 30 * (-1) ** number) for number in range(30)]
    assert verdict(swinging, [], NO_COUNTS, 384)[1] == []
