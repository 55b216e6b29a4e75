"""Intervals: against known values, and as properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.quality.statistics import paired_difference, wilson

SCORES = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=40)


def test_wilson_of_eight_in_ten() -> None:
    interval = wilson([1.0] * 8 + [0.0] * 2)
    assert (interval.mean, round(interval.low, 4), round(interval.high, 4)) == (0.8, 0.4902, 0.9433)


@given(SCORES)
def test_wilson_holds_the_mean_and_shrinks_with_samples(scores: list[float]) -> None:
    one, four = wilson(scores), wilson(scores * 4)
    assert 0.0 <= one.low <= one.mean <= one.high <= 1.0
    assert four.high - four.low < one.high - one.low


@given(SCORES)
def test_no_difference_from_itself(scores: list[float]) -> None:
    interval = paired_difference([(scores, scores)])
    assert (interval.mean, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_difference_is_the_mean_over_cells() -> None:
    interval = paired_difference([([1.0] * 50, [0.0] * 50), ([0.0] * 10, [0.0] * 10)])
    assert interval.mean == interval.low == interval.high == -0.5


def test_difference_of_noise_includes_zero_and_of_a_gain_does_not() -> None:
    first = [float(at % 2) for at in range(200)]
    noise = [float(at % 4 < 2) for at in range(200)]
    gain = [1.0 if at % 4 else 0.0 for at in range(200)]
    assert paired_difference([(first, noise)]).low < 0.0 < paired_difference([(first, noise)]).high
    assert paired_difference([(first, gain)]).low > 0.0


@pytest.mark.parametrize("cells", [[], [([], [])], [([1.0], [1.0, 0.0])]])
def test_what_cannot_be_paired_is_refused(cells: list[tuple[list[float], list[float]]]) -> None:
    with pytest.raises(ValueError, match=r"cells|pairs"):
        paired_difference(cells)
    with pytest.raises(ValueError, match="no scores"):
        wilson([])
