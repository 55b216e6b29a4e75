from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swaa_runtime.step_rules import BESIDES_SHARE, ahead_ms, ends_with_first

TIMES_MS = st.floats(0.0, 1000.0)


@given(st.lists(st.floats(1.0, 1000.0), min_size=2, max_size=6), TIMES_MS)
def test_a_step_ends_with_the_first_exactly_if_the_mean_wait_falls(own_ms: list[float], besides_ms: float) -> None:
    """Of prompts that would all end in one step, or the first in it and the rest in the next."""
    together = [besides_ms + sum(own_ms)] * len(own_ms)
    apart = [besides_ms + own_ms[0]] + [2 * besides_ms + sum(own_ms)] * (len(own_ms) - 1)
    saved_ms = sum(own_ms) - own_ms[0]
    if sum(apart) != pytest.approx(sum(together)):
        assert ends_with_first(saved_ms, besides_ms, len(own_ms)) == (sum(apart) < sum(together))


@given(st.floats(1.0, 100.0), st.floats(0.1, 100.0), st.floats(1.0, 200.0))
def test_answers_get_ahead_only_where_that_is_cheaper_and_prompts_do_not_wait_longer_for_it(
    besides_ms: float, decode_step_ms: float, target_ms: float
) -> None:
    step_ms = ahead_ms(besides_ms, decode_step_ms, target_ms)
    if step_ms == 0.0:
        assert besides_ms <= decode_step_ms or 2 * decode_step_ms > target_ms
        return
    assert (besides_ms - decode_step_ms) / step_ms == pytest.approx(BESIDES_SHARE)
    num_ahead = max(0.0, step_ms - target_ms) / (target_ms - decode_step_ms)
    assert num_ahead * decode_step_ms <= step_ms
    if step_ms > target_ms:
        long_ms = step_ms + num_ahead * decode_step_ms
        num_short, short_ms = num_ahead + 1, target_ms
        prompts_ms, beside_short_ms = step_ms - besides_ms, num_short * (short_ms - besides_ms)
        assert prompts_ms / long_ms >= beside_short_ms / (num_short * short_ms) - 1e-9, "of the time, for prompts"
