from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swaa_runtime.config import FAIR_SHARE, TPOT_SHARE
from swaa_runtime.request import Request
from swaa_runtime.step_budget import (
    MAX_EVALUATIONS,
    chunks,
    max_min_fair,
    most_tokens_within,
    share_prefill,
    step_limit_ms,
    strictest_target_ms,
    tokens_to_finish,
)
from tests.swaa_runtime.builders import build_request

NEEDS = st.lists(st.integers(1, 60), min_size=1, max_size=8)


def prompts(needs: list[int]) -> list[Request]:
    return [build_request(str(index), [0] * need) for index, need in enumerate(needs)]


# Sharing.


@given(NEEDS, st.integers(0, 120), st.sampled_from([0.0, FAIR_SHARE, 1.0]))
def test_shares_are_within_need_and_budget_and_leave_nothing_unused(needs: list[int], budget: int, fair: float) -> None:
    shares = share_prefill(prompts(needs), budget, fair)
    assert all(0 <= share <= need for share, need in zip(shares, needs, strict=True))
    assert sum(shares) == min(budget, sum(needs))


@given(NEEDS, st.integers(1, 120))
def test_equal_shares_are_max_min_fair(needs: list[int], budget: int) -> None:
    """Whoever gets less than it needs gets no less than any other, up to the one token of rounding."""
    shares = max_min_fair(needs, budget)
    assert sum(shares) == min(budget, sum(needs))
    for share, need in zip(shares, needs, strict=True):
        assert share == need or max(shares) <= share + 1


@given(NEEDS, st.integers(8, 120))
def test_everybody_gets_its_part_of_the_fair_share_and_at_least_a_token(needs: list[int], budget: int) -> None:
    part = max(1, int(budget * FAIR_SHARE) // len(needs))
    for share, need in zip(share_prefill(prompts(needs), budget), needs, strict=True):
        assert share >= min(need, part)


@given(NEEDS, st.integers(8, 120))
def test_beyond_its_fair_share_nobody_gets_anything_before_the_more_urgent_are_done(
    needs: list[int], budget: int
) -> None:
    shares = share_prefill(prompts(needs), budget)
    fair = max_min_fair(needs, min(budget, max(int(budget * FAIR_SHARE), len(needs))))
    unfinished = [index for index, need in enumerate(needs) if shares[index] < need]
    for index in range(len(needs)):
        if unfinished and index > unfinished[0]:
            assert shares[index] == fair[index]


def test_a_short_prompt_behind_a_huge_one_gets_through_in_few_steps() -> None:
    huge, short = build_request("huge", [0] * 100_000), build_request("short", [0] * 500)
    steps = 0
    while short.num_remaining_tokens:
        shares = share_prefill([huge, short], 1024)
        huge.num_computed_tokens += shares[0]
        short.num_computed_tokens += shares[1]
        steps += 1
    assert steps == 8


def test_without_a_fair_share_it_is_strictly_in_order() -> None:
    assert share_prefill(prompts([50, 3, 9]), 55, fair_share=0) == [50, 3, 2]
    first, second, _ = prompts([50, 3, 9])
    assert [(c.request, c.num_tokens) for c in chunks([first, second], [50, 0])] == [(first, 50)]


@given(NEEDS, NEEDS, st.lists(st.integers(0, 60), min_size=8, max_size=8), st.integers(1, 16))
def test_chunks_end_at_multiples_where_that_costs_at_most_half(
    needs: list[int], computed: list[int], shares: list[int], multiple: int
) -> None:
    requests = prompts(needs)
    for request, done in zip(requests, computed, strict=False):
        request.num_computed_tokens = min(done, len(request.token_ids) - 1)
    shares = [min(share, request.num_ready_tokens) for share, request in zip(shares, requests, strict=False)]
    got = {chunk.request.request_id: chunk for chunk in chunks(requests, shares, multiple)}
    assert list(got) == [request.request_id for request, share in zip(requests, shares, strict=True) if share]
    for request, share in zip(requests, shares, strict=True):
        if share:
            chunk = got[request.request_id]
            stop = chunk.start + chunk.num_tokens
            if share == request.num_ready_tokens or stop % multiple:
                assert chunk.num_tokens == share
            assert share <= 2 * chunk.num_tokens <= 2 * share
            assert chunk.start + share - stop < multiple


def test_a_long_prompt_ends_its_chunks_at_multiples() -> None:
    request = build_request("long", [0] * 100)
    assert [chunk.num_tokens for chunk in chunks([request], [21], 8)] == [16]
    request.num_computed_tokens = 16
    assert [chunk.num_tokens for chunk in chunks([request], [21], 8)] == [16]
    assert [chunk.num_tokens for chunk in chunks([request], [7], 8)] == [7], "nothing would be left of it"
    assert [chunk.num_tokens for chunk in chunks([request], [84], 8)] == [84], "the prompt's end"


@given(NEEDS, st.sampled_from([0.0, FAIR_SHARE, 0.9]))
def test_the_first_prompt_is_finished_by_hardly_more_than_it_takes(needs: list[int], fair: float) -> None:
    budget = tokens_to_finish(needs[0], len(needs), fair)
    assert share_prefill(prompts(needs), budget, fair)[0] == needs[0]
    others_endless = [needs[0]] + [10_000] * (len(needs) - 1)
    most_too_few = budget - len(needs) - 2 / (1 - fair)
    for fewer in range(1, int(most_too_few) + 1):
        assert share_prefill(prompts(others_endless), fewer, fair)[0] < needs[0]


# Next tokens that are due.


def decoding(tokens: int, tpot_ms: float | None = 100.0, first_token_s: float = 10.0) -> Request:
    """A request that has so many tokens."""
    request = build_request("d", [0] * 5, tpot_ms=tpot_ms)
    request.first_token_s = first_token_s
    request.token_ids += [0] * tokens
    return request


def test_the_next_token_is_due_a_target_after_the_last_one_was() -> None:
    assert decoding(1).next_token_due_s() == pytest.approx(10.1)
    assert decoding(7).next_token_due_s() == pytest.approx(10.7)
    assert decoding(7, tpot_ms=None).next_token_due_s() is None
    assert build_request(tpot_ms=100.0).next_token_due_s() is None


def test_tokens_that_came_from_elsewhere_are_not_counted() -> None:
    request = build_request("d", [0] * 5, tpot_ms=100.0, sent_token_ids=[1, 2, 3])
    request.first_token_s = 10.0
    request.token_ids.append(3)
    assert request.next_token_due_s() == pytest.approx(10.1)


def test_a_step_may_take_until_the_earliest_next_token_is_due() -> None:
    requests = [decoding(5), decoding(2), decoding(3, tpot_ms=None)]
    assert step_limit_ms(requests, now_s=10.15, decode_step_ms=20.0) == pytest.approx(200.0 * TPOT_SHARE - 150.0)


def test_one_that_is_behind_its_target_catches_up() -> None:
    assert step_limit_ms([decoding(2)], now_s=10.19, decode_step_ms=20.0) == 50.0
    assert step_limit_ms([decoding(2)], now_s=99.0, decode_step_ms=20.0) == 50.0


def test_the_strictest_target_is_of_those_within_reach_and_none_if_one_is_late() -> None:
    in_time, stricter, beyond, none = decoding(2, 100.0), decoding(2, 80.0), decoding(2, 5.0), decoding(2, None)
    now_s = 10.0
    assert strictest_target_ms([in_time, stricter, beyond, none], now_s, 10.0) == pytest.approx(80.0 * TPOT_SHARE)
    assert strictest_target_ms([in_time, stricter], now_s + 0.150, 10.0) == 0.0, "a token was due at 152 ms"
    assert strictest_target_ms([none, beyond], now_s, 10.0) == 0.0


@pytest.mark.parametrize("requests", [[], [decoding(3, tpot_ms=None)], [decoding(2, tpot_ms=19.0)]])
def test_nothing_due_or_no_target_within_reach_is_no_limit(requests: list[Request]) -> None:
    assert step_limit_ms(requests, now_s=10.0, decode_step_ms=20.0) is None


# How many tokens that allows.


@given(
    st.integers(1, 50),
    st.integers(50, 5000),
    st.floats(0, 300),
    st.floats(0.001, 1.0),
    st.floats(0, 1e-4),
    st.floats(0, 600),
)
def test_the_most_tokens_within_a_limit(
    low: int, high: int, fixed: float, per_token: float, per_square: float, limit: float
) -> None:
    """Never above the limit unless at the least, the most that there could be, with few predictions."""
    asked: list[int] = []

    def step_ms(tokens: int) -> float:
        asked.append(tokens)
        return fixed + per_token * tokens + per_square * tokens**2

    tokens = most_tokens_within(limit, low, high, step_ms)
    assert low <= tokens <= high
    assert len(asked) <= MAX_EVALUATIONS
    assert tokens == low or step_ms(tokens) <= limit
    best = max((n for n in range(low, high + 1) if step_ms(n) <= limit), default=low)
    assert tokens >= best - 1, "a rounding error away at most"


def test_a_step_whose_time_jumps_is_kept_within_the_limit_all_the_same() -> None:
    """A model that is not the assumed one costs efficiency, never the limit."""
    tokens = most_tokens_within(100.0, 1, 4096, lambda tokens: 10.0 if tokens <= 700 else 500.0)
    assert 1 <= tokens <= 700


def test_linear_steps_are_solved_exactly() -> None:
    assert most_tokens_within(300.0, 16, 1000, lambda tokens: 100.0 + 0.5 * tokens) == 400


def test_no_more_is_predicted_than_needed() -> None:
    asked: list[int] = []

    def step_ms(tokens: int) -> float:
        asked.append(tokens)
        return float(tokens)

    assert most_tokens_within(10.0, 50, 50, step_ms) == 50
    assert asked == []
    assert most_tokens_within(10.0, 2, 9, step_ms) == 9
    assert asked == [9]
