"""Turns that are promised count at once, once, and until their first token."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.backlog import Backlog, DecodingTurn, PendingTurn
from services.replica.job import Job
from services.replica.promises import RECENT_TURNS, Promises
from services.restore_plan import RestorePlan
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import SamplingParams

PLAN = RestorePlan("load", "session", "", 0, 90, 700.0, "", work_tokens=10, work_ms=200.0)
JOB = Job("a", (1, 2, 3), "full", Recipe(), SamplingParams(9), priority=4, ttft_due_s=102.0, tpot_ms=40.0, restore=PLAN)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_promise_counts_from_the_moment_it_is_made() -> None:
    clock = Clock()
    promises = Promises(clock)
    promises.add(JOB)
    assert promises.added_to(Backlog()).pending == (PendingTurn("a", 10, 200.0, 2000.0, 4, 500.0, 40.0, 9),)
    clock.now_s += 1.0
    assert promises.added_to(Backlog()).pending == (PendingTurn("a", 10, 200.0, 1000.0, 4, -500.0, 40.0, 9),)


def test_what_the_backlog_tells_of_is_not_counted_twice() -> None:
    promises = Promises()
    promises.add(JOB)
    for known in (Backlog((PendingTurn("a", 5, 1.0, None, 0),)), Backlog(decoding=(DecodingTurn("a", None, 0),))):
        assert promises.added_to(known) == known


def test_a_promise_that_has_ended_counts_no_more() -> None:
    promises = Promises()
    promises.add(JOB)
    promises.end("b")
    assert len(promises.added_to(Backlog()).pending) == 1
    promises.end("a")
    promises.end("a")
    assert promises.added_to(Backlog()) == Backlog()


def test_the_rate_of_arrivals_is_that_of_the_recent_ones_until_now() -> None:
    clock = Clock()
    promises = Promises(clock)
    assert promises.added_to(Backlog()).arrivals_per_s == 0.0
    for number in range(3 * RECENT_TURNS):
        clock.now_s += 5.0 if number < RECENT_TURNS else 0.5
        promises.add(replace(JOB, request_id=str(number)))
        if number == 0:
            assert promises.added_to(Backlog()).arrivals_per_s == 0.0, "one tells of no rate"
    assert promises.added_to(Backlog()).arrivals_per_s == pytest.approx(2.0)
    for number in range(5):
        promises.add(replace(JOB, request_id=f"burst {number}"))
    assert promises.added_to(Backlog()).arrivals_per_s < 4.0, "a burst is no rate"
    clock.now_s += 1000.0
    assert promises.added_to(Backlog()).arrivals_per_s < 0.015
    assert promises.added_to(Backlog(arrivals_per_s=3.0)).arrivals_per_s == 3.0, "a replica sees those of all gateways"
