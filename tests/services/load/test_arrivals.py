"""Arrival times: in order, at the rate that was asked for, in bursts where asked for."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.load.arrivals import Bursts, arrival_times_s
from swaa_runtime.errors import InvalidRequest

BURSTS = st.builds(Bursts, peak=st.floats(1.1, 10), quiet=st.floats(0, 0.9), burst_s=st.floats(0.1, 20))


@given(seed=st.integers(0, 2**32), rate=st.floats(0.1, 50), duration=st.floats(0.1, 60), bursts=st.none() | BURSTS)
@example(seed=0, rate=0.5, duration=1.0, bursts=Bursts(peak=2.0, quiet=5e-324, burst_s=1.0))  # times the rate: 0
def test_times_ascend_within_the_duration_and_depend_on_the_seed_only(
    seed: int, rate: float, duration: float, bursts: Bursts | None
) -> None:
    times = arrival_times_s(rate, duration, random.Random(seed), bursts)
    assert times == sorted(times)
    assert all(0 <= at < duration for at in times)
    assert times == arrival_times_s(rate, duration, random.Random(seed), bursts)


@given(seed=st.integers(0, 2**32), rate=st.floats(1, 20))
def test_a_poisson_process_has_its_rate(seed: int, rate: float) -> None:
    duration = 2000 / rate
    count = len(arrival_times_s(rate, duration, random.Random(seed)))
    assert abs(count - 2000) < 6 * math.sqrt(2000)  # six standard deviations: one in a billion


@given(bursts=BURSTS)
def test_bursts_and_quiet_make_the_mean_rate(bursts: Bursts) -> None:
    share = bursts.share
    assert 0 < share < 1
    assert share * bursts.peak + (1 - share) * bursts.quiet == pytest.approx(1)
    assert bursts.burst_s / (bursts.burst_s + bursts.quiet_s) == pytest.approx(share)


def test_bursts_have_the_rate_too_and_are_less_even_than_poisson() -> None:
    duration, rate = 4000.0, 5.0
    bursty = arrival_times_s(rate, duration, random.Random(1), Bursts(peak=4, quiet=0, burst_s=5))
    even = arrival_times_s(rate, duration, random.Random(1))
    assert len(bursty) == pytest.approx(rate * duration, rel=0.1)
    assert _dispersion(bursty, duration) > 5 * _dispersion(even, duration)


def _dispersion(times: list[float], duration: float, window: float = 5.0) -> float:
    """Variance over mean of counts in windows: 1 for a Poisson process."""
    counts = [0] * round(duration / window)
    for at in times:
        counts[int(at / window)] += 1
    return statistics.pvariance(counts) / statistics.mean(counts)


@pytest.mark.parametrize(
    ("field", "values"),
    [("peak", {"peak": 1.0}), ("quiet", {"quiet": 1.0}), ("quiet", {"quiet": -0.1}), ("burst_s", {"burst_s": 0.0})],
)
def test_bursts_out_of_bounds_are_named(field: str, values: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Bursts(**values)
    assert caught.value.field == field


@pytest.mark.parametrize(("rate", "duration", "field"), [(0, 1, "rate"), (-1, 1, "rate"), (1, 0, "duration_s")])
def test_a_rate_or_duration_that_is_not_above_0_is_refused(rate: float, duration: float, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        arrival_times_s(rate, duration, random.Random(0))
    assert caught.value.field == field
