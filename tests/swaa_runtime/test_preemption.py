from __future__ import annotations

import math

import pytest

from swaa_runtime.preemption import MAX_PREEMPTIONS, Candidate, Lack, Need, choose_victims, wait_ms
from tests.swaa_runtime.builders import build_request


def candidate(
    name: str, blocks: int = 10, slack: float = math.inf, ends: float = 1e6, size: int | None = 100, priority: int = 0
) -> Candidate:
    request = build_request(name, 5, priority=priority)
    request.num_reserved_blocks, request.num_computed_tokens = blocks, 3
    return Candidate(request, slack, ends, size)


def need(blocks: int = 10, slots: int = 0, slack: float = 50.0, stays: float = 1000.0, priority: int = 0) -> Need:
    return Need(build_request("wanted", 5, priority=priority), slack, stays, Lack(blocks, slots))


def victims(wanted: Need, *running: Candidate, free_bytes: int = 1000) -> list[str]:
    return sorted(request.request_id for request in choose_victims(wanted, running, free_bytes))


def test_it_waits_until_enough_of_those_that_run_are_done() -> None:
    running = [candidate("a", 4, ends=30.0), candidate("b", 6, ends=10.0), candidate("c", 5, ends=20.0)]
    assert wait_ms(Lack(6, 0), running) == 10.0
    assert wait_ms(Lack(11, 0), running) == 20.0
    assert wait_ms(Lack(15, 0), running) == 30.0
    assert wait_ms(Lack(16, 0), running) == math.inf
    assert wait_ms(Lack(0, 1), running) == 10.0


def test_the_one_with_the_most_slack_makes_room() -> None:
    assert victims(need(), candidate("a", slack=5e3), candidate("b", slack=9e3), candidate("c", slack=7e3)) == ["b"]


def test_those_that_are_late_already_go_first_then_those_without_a_due_time() -> None:
    late, endless, lax = candidate("late", slack=-5.0), candidate("endless"), candidate("lax", slack=9e3)
    assert victims(need(), lax, endless, late) == ["late"]
    assert victims(need(), lax, endless) == ["endless"]


def test_no_more_are_taken_out_than_needed() -> None:
    small, large = candidate("small", blocks=2, slack=9e3), candidate("large", blocks=10, slack=4e3)
    assert victims(need(10), small, large) == ["large"]
    assert victims(need(11), small, large) == ["large", "small"]
    assert victims(need(13), small, large) == [], "nobody goes if it would not help"
    assert victims(need(0, slots=1), small, large) == ["small"]


def test_a_more_important_one_never_goes_and_a_more_urgent_one_neither() -> None:
    assert victims(need(priority=1), candidate("a", priority=2)) == []
    assert victims(need(slack=900.0, priority=1), candidate("a", slack=40.0)) == []


def test_one_of_equal_priority_goes_only_if_that_does_not_make_it_late() -> None:
    assert victims(need(stays=1000.0), candidate("a", slack=999.0)) == []
    assert victims(need(stays=1000.0), candidate("a", slack=1000.0)) == ["a"]
    assert victims(need(stays=1000.0, priority=1), candidate("a", slack=999.0)) == ["a"]


def test_nobody_is_taken_out_too_often_or_before_it_made_progress() -> None:
    often, again = candidate("often"), candidate("again")
    often.request.num_preemptions = MAX_PREEMPTIONS
    again.request.num_preemptions, again.request.preempted_at_tokens = 1, 3
    assert victims(need(), often, again) == []
    again.request.num_computed_tokens = 4
    assert victims(need(), often, again) == ["again"]


@pytest.mark.parametrize("size", [None, 1001])
def test_a_state_that_cannot_be_moved_stays(size: int | None) -> None:
    assert victims(need(), candidate("a", size=size)) == []
    assert victims(need(), candidate("a", size=size), candidate("b", slack=9e3)) == ["b"]


def test_states_together_stay_within_the_memory_there_is() -> None:
    running = [candidate(name, blocks=5, size=100) for name in "abc"]
    assert len(victims(need(10), *running, free_bytes=200)) == 2
    assert victims(need(10), *running, free_bytes=199) == []
