from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from swaa_runtime.config import MIN_PREFILL_TOKENS
from swaa_runtime.errors import OutOfCapacity
from swaa_runtime.kv_cache.manager import KVCacheManager
from swaa_runtime.load import DecodeLoad, EngineLoad, PrefillLoad
from swaa_runtime.request import Request, SamplingParams, Status
from swaa_runtime.scheduler import AGED_S, HOLD_S, Scheduler
from swaa_runtime.step_budget import MAX_EVALUATIONS, tokens_to_finish
from swaa_runtime.step_cost import StepCost, UnknownCost
from tests.swaa_runtime.builders import FakeClock, LinearCost, TwoBasesCost, build_request, engine_config


def waiting_request(request_id: str, tokens: int = 8, priority: int = 0, computed: int = 0) -> Request:
    sampling = SamplingParams(max_tokens=1)
    request = build_request(request_id, [0] * tokens, num_layers=1, sampling=sampling, priority=priority)
    request.num_computed_tokens = computed
    return request


def build_scheduler(cost: StepCost | None = None, clock: FakeClock | None = None, **sizes: Any) -> Scheduler:
    config = engine_config(**{"block_size_tokens": 4, "max_step_tokens": 8, "max_running": 4, "max_waiting": 4} | sizes)
    manager = KVCacheManager(config.num_blocks, config.block_size_tokens, config.max_step_tokens)
    return Scheduler(manager, config, cost, clock or FakeClock())


def names(requests: Iterable[Request]) -> str:
    return "".join(request.request_id for request in requests)


def shares(scheduler: Scheduler) -> dict[str, int]:
    """The next step, which is not run."""
    return {chunk.request.request_id: chunk.num_tokens for chunk in scheduler.schedule()}


# Admission.


def test_requests_are_admitted_by_priority_then_by_arrival() -> None:
    scheduler = build_scheduler(max_running=3)
    for request_id, priority in (("a", 0), ("b", 1), ("c", 0), ("d", 1)):
        scheduler.add(waiting_request(request_id, priority=priority))
    assert [request.request_id for request in scheduler.admit()] == ["b", "d", "a"]
    assert [request.request_id for request in scheduler.waiting] == ["c"]
    assert all(request.status is Status.RUNNING for request in scheduler.running)


def test_a_full_queue_refuses_one_more_and_keeps_the_others() -> None:
    scheduler = build_scheduler(max_waiting=2)
    first, second = waiting_request("a"), waiting_request("b")
    scheduler.add(first)
    scheduler.add(second)
    with pytest.raises(OutOfCapacity, match="2 requests are waiting"):
        scheduler.add(waiting_request("c"))
    assert scheduler.requests == [first, second]


def test_one_that_could_never_fit_is_refused_at_once() -> None:
    scheduler = build_scheduler(num_blocks=4)
    with pytest.raises(OutOfCapacity, match="needs 4 KV blocks"):
        scheduler.add(waiting_request("a", tokens=13))
    assert scheduler.requests == []


def test_waiting_requests_are_admitted_by_slack_the_late_ones_last() -> None:
    clock = FakeClock()
    scheduler = build_scheduler(LinearCost(token_ms=100.0), clock, max_running=3)
    for name, due_in_s in (("a", None), ("b", 0.5), ("c", 9.0), ("d", 2.0)):
        request = waiting_request(name, tokens=8)  # 800 ms of work
        request.ttft_due_s = None if due_in_s is None else clock.now_s + due_in_s
        scheduler.add(request)
    assert names(scheduler.admit()) == "dca"


def waiting_behind_a_big_one(**options: Any) -> tuple[Scheduler, FakeClock, Request]:
    """Five blocks, three of them in use; "b" wants four, "c" one."""
    clock = FakeClock()
    scheduler = build_scheduler(LinearCost(), clock, num_blocks=6, max_swapped_bytes=0, **options)
    running, big, small = waiting_request("a", 12), waiting_request("b", 16), waiting_request("c", 4)
    for request in (running, big, small):
        scheduler.add(request)
    return scheduler, clock, big


def test_a_small_request_passes_a_large_one_that_does_not_fit_for_a_while() -> None:
    scheduler, _, _ = waiting_behind_a_big_one()
    assert names(scheduler.admit()) == "ac"


def test_one_that_has_not_fitted_for_long_holds_back_those_behind_it() -> None:
    scheduler, clock, _ = waiting_behind_a_big_one(max_running=1)
    assert names(scheduler.admit()) == "a"
    scheduler = Scheduler(scheduler.manager, engine_config(max_running=4), LinearCost(), clock)
    for request in (waiting_request("b", 16), waiting_request("c", 4)):
        scheduler.add(request)
    clock.now_s += HOLD_S + 0.1
    assert names(scheduler.admit()) == ""


def test_one_that_can_still_be_in_time_holds_back_those_behind_it() -> None:
    scheduler, clock, big = waiting_behind_a_big_one()
    big.ttft_due_s = clock.now_s + 1.0
    scheduler.waiting[0].ttft_due_s = clock.now_s + 0.1
    assert names(scheduler.admit()) == "a"


def test_under_fcfs_all_goes_by_arrival_and_nobody_passes() -> None:
    scheduler, clock, _ = waiting_behind_a_big_one(policy="fcfs")
    scheduler.waiting[2].priority, scheduler.waiting[2].ttft_due_s = 9, clock.now_s + 0.1
    assert names(scheduler.admit()) == "a"
    assert scheduler.preempt(lambda _: 0, 1 << 30) == []


def test_whoever_waits_longest_is_next_in_the_end() -> None:
    """However many others are more urgent: one after the other is admitted."""
    clock = FakeClock()
    scheduler = build_scheduler(LinearCost(), clock, max_running=1, max_waiting=100)
    patient = waiting_request("p")
    scheduler.add(patient)
    started_s = clock.now_s
    while patient.status is Status.WAITING and clock.now_s < started_s + 2 * AGED_S:
        urgent = waiting_request("u", priority=5)
        urgent.ttft_due_s = clock.now_s + 1.0
        scheduler.add(urgent)
        for request in scheduler.admit():
            scheduler.retire(request)
            scheduler.manager.free(request)
        clock.now_s += 0.5
    assert patient.status is Status.FINISHED
    assert AGED_S < clock.now_s - started_s < AGED_S + 2


def test_room_is_made_for_one_that_does_not_fit_and_no_more_than_needed() -> None:
    scheduler, _, _ = waiting_behind_a_big_one()
    asked: list[int] = []

    def no_room(blocks: int) -> bool:
        asked.append(blocks)
        return False

    assert names(scheduler.admit(no_room)) == "ac"
    assert asked == [2]


def test_more_is_refused_while_more_work_is_queued_than_allowed() -> None:
    scheduler = build_scheduler(LinearCost(token_ms=10.0), max_queued_ms=100.0)
    scheduler.add(waiting_request("a", tokens=8))
    scheduler.add(waiting_request("b", tokens=8))
    with pytest.raises(OutOfCapacity, match="the predicted wait is 160 ms, max_queued_ms is 100 ms"):
        scheduler.add(waiting_request("c", tokens=1))
    scheduler.admit()
    scheduler.running[0].num_computed_tokens = 7
    scheduler.add(waiting_request("c", tokens=1))


def test_a_request_that_decodes_is_no_queued_prefill() -> None:
    scheduler, clock = build_scheduler(LinearCost(token_ms=10.0), max_queued_ms=0.0), FakeClock()
    scheduler.add(waiting_request("a", tokens=8))
    scheduler.admit()
    scheduler.running[0].first_token_s = clock.now_s
    scheduler.add(waiting_request("b", tokens=8))


# Steps.


def test_a_step_takes_no_more_than_its_budget_and_covers_it_with_blocks() -> None:
    scheduler = build_scheduler(max_step_tokens=8)
    for index in range(3):
        scheduler.add(waiting_request(str(index), tokens=10))
    scheduler.admit()
    scheduled = scheduler.schedule()
    assert sum(chunk.num_tokens for chunk in scheduled) == 8
    assert all(len(chunk.request.block_tables[0]) == -(-chunk.num_tokens // 4) for chunk in scheduled)


def test_a_paused_request_is_not_scheduled() -> None:
    scheduler = build_scheduler()
    paused, other = waiting_request("a"), waiting_request("b")
    scheduler.add(paused)
    scheduler.add(other)
    scheduler.admit()
    paused.paused = True
    assert [chunk.request.request_id for chunk in scheduler.schedule()] == ["b"]


@pytest.mark.parametrize("running", [True, False])
def test_a_removed_request_leaves_nothing_behind(running: bool) -> None:
    scheduler = build_scheduler()
    request = waiting_request("a", tokens=20)
    scheduler.add(request)
    if running:
        scheduler.admit()
        scheduler.schedule()
    scheduler.retire(request)
    assert len(scheduler.manager.free(request)) == (2 if running else 0)
    assert request.status is Status.FINISHED
    assert scheduler.requests == []
    assert all(request.request_id != "a" for request in scheduler.requests)


def test_a_request_is_not_run_past_what_it_may_compute_now() -> None:
    scheduler = build_scheduler(max_step_tokens=8)
    limited, other = waiting_request("a", tokens=20), waiting_request("b", tokens=20)
    for request in (limited, other):
        scheduler.add(request)
    scheduler.admit()
    limited.compute_limit = 3
    assert shares(scheduler) == {"a": 3, "b": 5}
    limited.num_computed_tokens = 3
    assert shares(scheduler) == {"b": 8}


def test_a_chunk_ends_at_the_next_checkpoint() -> None:
    scheduler = build_scheduler(max_step_tokens=8)
    request = waiting_request("a", tokens=20)
    request.checkpoint_tokens = 6
    scheduler.add(request)
    scheduler.admit()
    sizes = []
    while request.num_remaining_tokens:
        [chunk] = scheduler.schedule()
        sizes.append(chunk.num_tokens)
        request.num_computed_tokens += chunk.num_tokens
    assert sizes == [6, 6, 6, 2]


def decoding_beside_a_long_prompt(
    scheduler: Scheduler, clock: FakeClock, tpot_ms: float | None, due_in_ms: float
) -> Request:
    """One request whose next token is due so soon, and one with a long prompt."""
    decoding, prompt = waiting_request("d", tokens=10), waiting_request("p", tokens=1000)
    for request in (decoding, prompt):
        scheduler.add(request)
    scheduler.admit()
    decoding.num_computed_tokens, decoding.tpot_ms = 10, tpot_ms
    decoding.token_ids.append(0)
    decoding.first_token_s = clock.now_s + (due_in_ms - (tpot_ms or 0)) / 1e3
    return decoding


@pytest.mark.parametrize(
    ("tpot_ms", "due_in_ms", "tokens"),
    [
        (None, 50.0, 255),  # nothing aimed at
        (100.0, 60.0, 44),  # 10 ms a step and 1 ms a token, 5 ms kept back
        (100.0, 5000.0, 255),  # far ahead of its target
        (100.0, 25.0, MIN_PREFILL_TOKENS),  # prefill goes on
        (100.0, -500.0, 39),  # behind: a step of half the target
        (9.0, 5.0, 255),  # no step is that short
    ],
)
def test_prefill_ends_before_a_next_token_is_due(tpot_ms: float | None, due_in_ms: float, tokens: int) -> None:
    clock, cost = FakeClock(), LinearCost(fixed_ms=10.0)
    scheduler = build_scheduler(cost, clock, max_step_tokens=256)
    decoding_beside_a_long_prompt(scheduler, clock, tpot_ms, due_in_ms)
    assert shares(scheduler) == {"d": 1, "p": tokens}
    assert cost.step_calls <= 3 + MAX_EVALUATIONS, "of answers alone, all that is ready, what a step takes besides"


@pytest.mark.parametrize(
    ("tpot_ms", "due_in_ms", "tokens"),
    [
        (100.0, 60.0, 0),  # 20 ms besides: 2 ms for answers, and a step with prompts should take 288 ms
        (100.0, 293.0, 255),  # far enough ahead for all of it: 275 ms
        (100.0, -500.0, 30),  # late: nobody waits for it to catch up
        (3.0, 2.5, MIN_PREFILL_TOKENS),  # answers alone take most of the time there is
    ],
)
def test_answers_get_ahead_before_a_long_step_with_prompts(tpot_ms: float, due_in_ms: float, tokens: int) -> None:
    clock, cost = FakeClock(), TwoBasesCost(fixed_ms=1.0, prompt_ms=18.0)
    scheduler = build_scheduler(cost, clock, max_step_tokens=256)
    decoding_beside_a_long_prompt(scheduler, clock, tpot_ms, due_in_ms)
    assert shares(scheduler).get("p", 0) == tokens


def test_a_short_prompt_need_not_wait_for_answers_to_get_ahead() -> None:
    clock, cost = FakeClock(), TwoBasesCost(fixed_ms=1.0, prompt_ms=18.0)
    scheduler = build_scheduler(cost, clock, max_step_tokens=256)
    decoding_beside_a_long_prompt(scheduler, clock, 100.0, 60.0)
    short = waiting_request("s", tokens=20)
    short.ttft_due_s = clock.now_s + 10.0
    scheduler.add(short)
    scheduler.admit()
    assert shares(scheduler) == {"d": 1, "s": 20, "p": 3}, "43 ms"


@pytest.mark.parametrize("options", [{"policy": "fcfs"}, {"cost": UnknownCost()}])
def test_nothing_is_protected_under_fcfs_or_while_costs_are_unknown(options: dict[str, Any]) -> None:
    clock = FakeClock()
    scheduler = build_scheduler(clock=clock, max_step_tokens=256, **{"cost": LinearCost(), **options})
    decoding_beside_a_long_prompt(scheduler, clock, 100.0, 20.0)
    assert shares(scheduler) == {"d": 1, "p": 255}


def test_prefill_goes_least_slack_first_beside_the_fair_share() -> None:
    clock = FakeClock()
    scheduler = build_scheduler(LinearCost(), clock, max_step_tokens=100)
    for name, due_in_s in (("a", None), ("b", 9.0), ("c", 5.0), ("l", 0.1)):
        request = waiting_request(name, tokens=400)
        request.ttft_due_s = None if due_in_s is None else clock.now_s + due_in_s
        scheduler.add(request)
    scheduler.admit()
    assert shares(scheduler) == {"c": 3 + 88, "b": 3, "a": 3, "l": 3}


@pytest.mark.parametrize(
    ("fixed_ms", "options", "expected"),
    [
        (10.0, {}, {"a": 40, "b": 4}),  # 44 ms in place of 100, and "b" waits for 11 ms more
        (60.0, {}, {"a": 40, "b": 60}),  # a step more costs "b" more than "a" has of it
        (10.0, {"policy": "fcfs"}, {"a": 40, "b": 60}),
    ],
)
def test_a_step_ends_with_the_prompt_it_completes_if_that_is_worth_a_step_more(
    fixed_ms: float, options: dict[str, Any], expected: dict[str, int]
) -> None:
    scheduler = build_scheduler(LinearCost(fixed_ms=fixed_ms), FakeClock(), max_step_tokens=100, **options)
    for name, tokens in (("a", 40), ("b", 400)):
        scheduler.add(waiting_request(name, tokens=tokens))
    scheduler.admit()
    assert shares(scheduler) == expected


def test_a_prompt_that_stops_at_a_checkpoint_is_not_completed() -> None:
    scheduler = build_scheduler(LinearCost(fixed_ms=1.0), FakeClock(), max_step_tokens=100)
    for name, tokens in (("a", 60), ("b", 400)):
        request = waiting_request(name, tokens=tokens)
        request.checkpoint_tokens = 40
        scheduler.add(request)
    scheduler.admit()
    assert shares(scheduler)["a"] == 40
    assert sum(shares(scheduler).values()) > tokens_to_finish(60, 2)


def test_under_fcfs_prefill_goes_by_arrival() -> None:
    clock = FakeClock()
    scheduler = build_scheduler(LinearCost(), clock, max_step_tokens=100, policy="fcfs")
    for name, due_in_s in (("a", 9.0), ("b", 0.5)):
        request = waiting_request(name, tokens=80, priority=int(name == "b"))
        request.ttft_due_s = clock.now_s + due_in_s
        scheduler.add(request)
    scheduler.admit()
    assert shares(scheduler) == {"a": 80, "b": 20}


# Preemption.


def urgent_behind_a_lax_one(due_in_s: float = 0.15, **options: Any) -> tuple[Scheduler, Request, Request]:
    """A pool of five blocks: "l" is due in 100 s, holds four and takes 180 ms still; "u" wants two and 80 ms."""
    clock = FakeClock()
    scheduler = build_scheduler(LinearCost(token_ms=10.0), clock, **{"num_blocks": 6, **options})
    lax, urgent = waiting_request("l", 16), waiting_request("u", 8)
    lax.ttft_due_s, urgent.ttft_due_s = clock.now_s + 100.0, clock.now_s + due_in_s
    scheduler.add(lax)
    scheduler.admit()
    scheduler.add(urgent)
    assert scheduler.admit() == []
    return scheduler, lax, urgent


def test_one_with_more_slack_makes_room_for_one_that_would_be_late() -> None:
    scheduler, lax, urgent = urgent_behind_a_lax_one()
    lax.num_computed_tokens = 1
    assert scheduler.preempt(lambda _: 100, free_bytes=100) == [lax]
    assert (scheduler.running, scheduler.leaving, lax.status) == ([], [lax], Status.LEAVING)
    assert (lax.num_preemptions, lax.preempted_at_tokens) == (1, 1)
    assert scheduler.requests == [lax, urgent]
    assert scheduler.preempt(lambda _: 100, free_bytes=100) == [], "one after the other"
    assert scheduler.admit() == [], "its blocks are not free yet"
    scheduler.manager.free(lax)
    scheduler.requeue(lax)
    assert lax.status is Status.WAITING
    assert scheduler.admit() == [urgent]


def test_a_place_among_the_running_is_reason_enough() -> None:
    scheduler, lax, _ = urgent_behind_a_lax_one(num_blocks=100, max_running=1)
    assert scheduler.preempt(lambda _: 0, free_bytes=0) == [lax]


@pytest.mark.parametrize("due_in_s", [0.30, 0.07])
def test_nobody_is_taken_out_for_one_that_can_wait_or_is_late_anyway(due_in_s: float) -> None:
    scheduler, _, _ = urgent_behind_a_lax_one(due_in_s)
    assert scheduler.preempt(lambda _: 0, free_bytes=0) == []


@pytest.mark.parametrize(("prompt_tokens", "makes_room"), [(16, True), (5, False)])
def test_an_answer_holds_its_memory_as_long_as_prompts_run_beside_it(prompt_tokens: int, makes_room: bool) -> None:
    """Its three tokens would take 30 ms alone. It may have one a second, so that whatever prompts there are come first;
    with those of 160 ms the urgent one, which can wait for 110 ms, would be late."""
    clock = FakeClock()
    scheduler = build_scheduler(LinearCost(token_ms=10.0), clock, max_running=2, num_blocks=100)
    answering, lax, urgent = waiting_request("a", 4), waiting_request("l", prompt_tokens), waiting_request("u", 8)
    lax.ttft_due_s, urgent.ttft_due_s = clock.now_s + 100.0, clock.now_s + 0.19
    for request in (answering, lax):
        scheduler.add(request)
    scheduler.admit()
    answering.num_computed_tokens, answering.first_token_s, answering.tpot_ms = 3, clock.now_s, 1000.0
    answering.sampling = replace(answering.sampling, max_tokens=3)
    scheduler.add(urgent)
    assert scheduler.admit() == []
    assert scheduler.preempt(lambda _: 0, free_bytes=0) == ([lax] if makes_room else [])


def test_nobody_is_taken_out_if_host_memory_is_short_or_costs_are_unknown() -> None:
    scheduler, lax, _ = urgent_behind_a_lax_one()
    assert scheduler.preempt(lambda _: 100, free_bytes=99) == []
    assert scheduler.preempt(lambda _: None, free_bytes=99) == []
    scheduler.set_cost(UnknownCost())
    assert scheduler.preempt(lambda _: 0, free_bytes=0) == []
    scheduler.set_cost(LinearCost(token_ms=10.0))
    assert scheduler.preempt(lambda _: 0, free_bytes=0) == [lax]


def test_a_leaving_request_can_be_taken_out_for_good() -> None:
    scheduler, lax, urgent = urgent_behind_a_lax_one()
    scheduler.preempt(lambda _: 0, free_bytes=0)
    scheduler.retire(lax)
    scheduler.manager.free(lax)
    assert scheduler.requests == [urgent]
    assert scheduler.admit() == [urgent]


def test_one_whose_reader_is_slow_does_not_come_back_until_it_reads() -> None:
    scheduler, lax, urgent = urgent_behind_a_lax_one()
    scheduler.preempt(lambda _: 0, free_bytes=0)
    scheduler.manager.free(lax)
    scheduler.requeue(lax)
    lax.paused = True
    scheduler.retire(urgent)
    assert scheduler.admit() == []
    assert not scheduler.is_full
    lax.paused = False
    assert scheduler.admit() == [lax]


# What there is to do yet.


def test_the_load_tells_of_each_request_what_is_left_and_when_it_is_due() -> None:
    clock = FakeClock()
    scheduler = build_scheduler(LinearCost(fixed_ms=5.0, token_ms=2.0), clock, max_running=2)
    decoding, prefilling, waiting = (waiting_request(name, tokens=10, priority=3) for name in "abc")
    for request in (decoding, prefilling, waiting):
        scheduler.add(request)
    scheduler.admit()
    decoding.num_computed_tokens, decoding.first_token_s, decoding.tpot_ms = 9, clock.now_s, 40.0
    prefilling.num_computed_tokens, prefilling.ttft_due_s = 6, clock.now_s + 2
    load = scheduler.load()
    assert load == EngineLoad(
        taken_s=clock.now_s,
        prefills=(
            PrefillLoad("b", 4, 13.0, clock.now_s + 2, 3, False, answer_ms=2.0),
            PrefillLoad("c", 10, 25.0, None, 3, True, answer_ms=2.0),
        ),
        decodes=(DecodeLoad("a", 40.0, 3, 1),),
        decode_step_ms=7.0,
        interrupt_tokens=2048,
        num_layers=len(decoding.rules),
    )
    assert load.prefill_ms == 38.0


def test_an_idle_scheduler_has_no_load() -> None:
    scheduler = build_scheduler()
    assert (scheduler.load().prefills, scheduler.load().decodes, scheduler.load().decode_step_ms) == ((), (), 0.0)
