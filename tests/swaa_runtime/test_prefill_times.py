from __future__ import annotations

from swaa_runtime.prefill_times import REFRESH_S, PrefillTime, PrefillTimes
from tests.swaa_runtime.builders import FakeClock, LinearCost, build_request


def test_a_prediction_is_made_once_until_the_request_moves_on_or_it_grows_old() -> None:
    clock, cost, request = FakeClock(), LinearCost(token_ms=2.0), build_request(prompt=10)
    times = PrefillTimes(cost, clock)
    assert [times.ms(request) for _ in range(3)] == [20.0] * 3
    assert cost.prefill_calls == 1
    request.num_computed_tokens = 4
    assert [times.ms(request) for _ in range(3)] == [12.0] * 3
    assert cost.prefill_calls == 2
    clock.now_s += REFRESH_S + 0.1
    cost.token_ms = 3.0
    assert times.ms(request) == 18.0
    assert times.of(request) == PrefillTime(18.0, cost.chunk_ms(request), cost.answer_ms(request))


def test_what_is_restored_takes_no_time() -> None:
    times, request = PrefillTimes(LinearCost(token_ms=2.0), FakeClock()), build_request(prompt=100)
    request.restoring = (20, 90)
    assert times.ms(request) == (20 + 10) * 2.0
    request.num_computed_tokens = 15
    assert times.ms(request) == (5 + 10) * 2.0
    request.restoring, request.num_computed_tokens = None, 90
    assert times.ms(request) == 20.0


def test_a_request_that_has_ended_is_forgotten() -> None:
    cost, request = LinearCost(), build_request(prompt=10)
    times = PrefillTimes(cost, FakeClock())
    times.ms(request)
    times.forget("r")
    times.forget("r")
    times.ms(request)
    assert cost.prefill_calls == 2
