from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swaa_runtime.errors import OutOfCapacity
from swaa_runtime.kv_cache.manager import KVCacheManager
from swaa_runtime.load import DecodeLoad, EngineLoad, PrefillLoad
from swaa_runtime.request import Request, SamplingParams, Status
from swaa_runtime.scheduler import Scheduler, share_budget
from tests.swaa_runtime.builders import FakeClock, LinearCost, build_request


def waiting_request(request_id: str, tokens: int = 8, priority: int = 0, computed: int = 0) -> Request:
    sampling = SamplingParams(max_tokens=1)
    request = build_request(request_id, [0] * tokens, num_layers=1, sampling=sampling, priority=priority)
    request.num_computed_tokens = computed
    return request


def build_scheduler(num_blocks: int = 100, max_step: int = 8, max_running: int = 4, max_waiting: int = 4) -> Scheduler:
    return Scheduler(KVCacheManager(num_blocks, 4, max_step), max_step, max_running, max_waiting)


# Sharing the budget.

NEEDS = st.lists(st.tuples(st.integers(1, 60), st.integers(-1, 1)), min_size=1, max_size=8)


@given(NEEDS, st.integers(1, 120))
def test_shares_are_within_need_and_budget_and_leave_nothing_unused(needs: list[tuple[int, int]], budget: int) -> None:
    requests = [waiting_request(str(i), need, priority) for i, (need, priority) in enumerate(needs)]
    shares = share_budget(requests, budget)
    assert all(0 < tokens <= request.num_remaining_tokens for request, tokens in shares)
    assert len({request.request_id for request, _ in shares}) == len(shares)
    assert sum(tokens for _, tokens in shares) == min(budget, sum(need for need, _ in needs))


@given(NEEDS, st.integers(1, 120))
def test_shares_are_max_min_fair_within_a_priority(needs: list[tuple[int, int]], budget: int) -> None:
    """Whoever gets less than it needs gets no less than its peers, up to the one token of rounding."""
    requests = [waiting_request(str(i), need, priority) for i, (need, priority) in enumerate(needs)]
    shares = {request.request_id: tokens for request, tokens in share_budget(requests, budget)}
    for poor in requests:
        got = shares.get(poor.request_id, 0)
        if got < poor.num_remaining_tokens:
            peers = [r for r in requests if r.priority == poor.priority and r.num_remaining_tokens > 1]
            assert all(shares.get(peer.request_id, 0) <= got + 1 for peer in peers)


@given(NEEDS, st.integers(1, 120))
def test_a_priority_is_served_before_those_below_it_but_after_decoding(
    needs: list[tuple[int, int]], budget: int
) -> None:
    requests = [waiting_request(str(i), need, priority) for i, (need, priority) in enumerate(needs)]
    shares = {request.request_id: tokens for request, tokens in share_budget(requests, budget)}
    for low in requests:
        if shares.get(low.request_id, 0) == 0 or low.num_remaining_tokens == 1:
            continue
        first = [r for r in requests if r.priority > low.priority or r.num_remaining_tokens == 1]
        assert all(shares.get(r.request_id, 0) == r.num_remaining_tokens for r in first)


def test_a_decoding_request_and_a_short_prompt_do_not_wait_behind_a_long_one() -> None:
    decoding, short = waiting_request("d", 50, priority=-5, computed=49), waiting_request("s", 3)
    long = waiting_request("l", 10_000)
    assert share_budget([long, short, decoding], 100) == [(decoding, 1), (short, 3), (long, 96)]


def test_equal_prompts_share_equally() -> None:
    shares = share_budget([waiting_request(str(i), 100) for i in range(3)], 10)
    assert [tokens for _, tokens in shares] == [4, 3, 3]


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


def test_one_that_does_not_fit_now_holds_back_those_behind_it() -> None:
    scheduler = build_scheduler(num_blocks=6)
    big, bigger, small = waiting_request("a", 12), waiting_request("b", 16), waiting_request("c", 4)
    for request in (big, bigger, small):
        scheduler.add(request)
    assert scheduler.admit() == [big]
    assert scheduler.admit() == []
    scheduler.retire(big)
    scheduler.manager.free(big)
    assert scheduler.admit() == [bigger, small]


def test_a_step_takes_no_more_than_its_budget_and_covers_it_with_blocks() -> None:
    scheduler = build_scheduler(max_step=8)
    for index in range(3):
        scheduler.add(waiting_request(str(index), tokens=10))
    scheduler.admit()
    scheduled = scheduler.schedule()
    assert sum(chunk.num_tokens for chunk in scheduled) == 8
    assert all(len(chunk.request.block_tables[0]) == 1 for chunk in scheduled)


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
    scheduler = build_scheduler(max_step=8)
    limited, other = waiting_request("a", tokens=20), waiting_request("b", tokens=20)
    for request in (limited, other):
        scheduler.add(request)
    scheduler.admit()
    limited.compute_limit = 3
    assert {chunk.request.request_id: chunk.num_tokens for chunk in scheduler.schedule()} == {"a": 3, "b": 5}
    limited.num_computed_tokens = 3
    assert {chunk.request.request_id: chunk.num_tokens for chunk in scheduler.schedule()} == {"b": 8}


def test_a_chunk_ends_at_the_next_checkpoint() -> None:
    scheduler = build_scheduler(max_step=8)
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


# What there is to do yet.


def test_the_load_tells_of_each_request_what_is_left_and_when_it_is_due() -> None:
    clock = FakeClock()
    scheduler = Scheduler(KVCacheManager(100, 4, 8), 8, 2, 4, LinearCost(fixed_ms=5.0, token_ms=2.0), clock)
    decoding, prefilling, waiting = (waiting_request(name, tokens=10, priority=3) for name in "abc")
    for request in (decoding, prefilling, waiting):
        scheduler.add(request)
    scheduler.admit()
    decoding.num_computed_tokens, decoding.first_token_s, decoding.tpot_ms = 9, clock.now_s, 40.0
    prefilling.num_computed_tokens, prefilling.ttft_due_s = 6, clock.now_s + 2
    load = scheduler.load()
    assert load == EngineLoad(
        taken_s=clock.now_s,
        prefills=(PrefillLoad("b", 13.0, clock.now_s + 2, 3, False), PrefillLoad("c", 25.0, None, 3, True)),
        decodes=(DecodeLoad("a", 40.0, 3),),
        decode_step_ms=7.0,
    )
    assert load.prefill_ms == 38.0


def test_an_idle_scheduler_has_no_load() -> None:
    scheduler = build_scheduler()
    assert (scheduler.load().prefills, scheduler.load().decodes, scheduler.load().decode_step_ms) == ((), (), 0.0)
