from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swaa_runtime.request import SamplingParams
from swaa_runtime.sampler import draw_rows, filter_logits, sample, token_logprob

PROBABILITIES = (0.4, 0.3, 0.15, 0.1, 0.05)
ORDER = (3, 0, 4, 1, 2)
"""Which token has which probability: they are not sorted by id."""


def known_logits(shift: float = 0.0) -> torch.Tensor:
    """Logits of the probabilities above; softmax does not depend on `shift`."""
    logits = torch.empty(5)
    for token, probability in zip(ORDER, PROBABILITIES, strict=True):
        logits[token] = math.log(probability) + shift
    return logits


def kept(params: SamplingParams) -> list[int]:
    """Tokens that the filters leave, likeliest first."""
    filtered = filter_logits(known_logits(shift=3.0), params)
    return [token for token in ORDER if filtered[token] > -torch.inf]


def draw(params: SamplingParams, count: int, seed: int = 0) -> Counter[int]:
    generator = torch.Generator().manual_seed(seed)
    logits = known_logits()
    return Counter(int(sample(logits, params, generator)) for _ in range(count))


@given(st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=20))
def test_greedy_takes_the_likeliest_and_needs_no_generator(values: list[float]) -> None:
    token = sample(torch.tensor(values), SamplingParams(temperature=0.0, top_k=1, top_p=0.1), None)
    assert values[token] == max(values)


@pytest.mark.parametrize(("top_k", "count"), [(0, 5), (1, 1), (2, 2), (5, 5), (99, 5)])
def test_top_k_keeps_k(top_k: int, count: int) -> None:
    assert kept(SamplingParams(temperature=1.0, top_k=top_k)) == list(ORDER[:count])


@pytest.mark.parametrize(
    ("top_p", "count"), [(1e-9, 1), (0.39, 1), (0.41, 2), (0.69, 2), (0.71, 3), (0.86, 4), (0.96, 5), (1.0, 5)]
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p: float, count: int) -> None:
    assert kept(SamplingParams(temperature=1.0, top_p=top_p)) == list(ORDER[:count])


@pytest.mark.parametrize(("min_p", "count"), [(0.0, 5), (0.12, 5), (0.13, 4), (0.3, 3), (0.5, 2), (0.76, 1), (1.0, 1)])
def test_min_p_drops_what_is_less_likely_than_that_fraction_of_the_likeliest(min_p: float, count: int) -> None:
    assert kept(SamplingParams(temperature=1.0, min_p=min_p)) == list(ORDER[:count])


def test_filters_see_the_distribution_after_temperature_and_earlier_filters() -> None:
    hot = SamplingParams(temperature=2.0, min_p=0.3)
    assert kept(hot) == list(ORDER), "flattened: 0.05 / 0.4 becomes its square root, 0.35"
    assert kept(SamplingParams(temperature=1.0, top_k=2, top_p=0.5)) == [ORDER[0]], "0.4 is 0.57 of what top-k left"


@given(st.floats(0.05, 5), st.integers(0, 6), st.floats(0.01, 1), st.floats(0, 1))
def test_filters_never_change_what_they_keep_and_keep_the_likeliest(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = known_logits()
    filtered = filter_logits(logits, SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p))
    finite = filtered.isfinite()
    assert torch.equal(filtered[finite], (logits / temperature)[finite])
    assert bool(finite[ORDER[0]])


@pytest.mark.parametrize("temperature", [1e-300, 1e-42, 1e-6, 1e-4])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3, "top_p": 0.9, "min_p": 0.1}])
def test_next_to_no_temperature_is_greedy_at_any_size_of_logits(temperature: float, filters: dict[str, float]) -> None:
    params = SamplingParams(temperature=temperature, **filters)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for scale in (1.0, 1e4):
        assert sample(known_logits() * scale, params, generator) == ORDER[0]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(temperature=1.0), PROBABILITIES),
        (SamplingParams(temperature=0.5), tuple(p * p / 0.285 for p in PROBABILITIES)),
        (SamplingParams(temperature=1.0, top_k=2), (4 / 7, 3 / 7, 0, 0, 0)),
        (SamplingParams(temperature=1.0, top_p=0.8), (0.4 / 0.85, 0.3 / 0.85, 0.15 / 0.85, 0, 0)),
        (SamplingParams(temperature=1.0, min_p=0.2), (0.4 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0.1 / 0.95, 0)),
    ],
)
def test_tokens_come_as_often_as_they_should(params: SamplingParams, expected: tuple[float, ...]) -> None:
    """4,000 draws: each count within four standard deviations of what is expected, excluded tokens never."""
    count = 4000
    counts = draw(params, count)
    for token, p in zip(ORDER, expected, strict=True):
        assert abs(counts[token] - count * p) <= 4 * math.sqrt(count * p * (1 - p))


def test_a_seed_repeats_and_another_differs() -> None:
    params = SamplingParams(temperature=1.0)
    draws = []
    for seed in (1, 1, 2):
        generator = torch.Generator().manual_seed(seed)
        draws.append([int(sample(known_logits(), params, generator)) for _ in range(50)])
    assert draws[0] == draws[1] != draws[2]


@given(st.lists(st.floats(-20, 20, width=32), min_size=3, max_size=30), st.data())
def test_logprobs_are_the_models_own(values: list[float], data: st.DataObject) -> None:
    logits = torch.tensor(values)
    token, num_top = data.draw(st.integers(0, len(values) - 1)), data.draw(st.integers(0, len(values)))
    got = token_logprob(logits, token, num_top)
    want = logits.double().log_softmax(-1)
    assert got.logprob == pytest.approx(float(want[token]), abs=1e-5)
    assert len(got.top_token_ids) == len(got.top_logprobs) == len(set(got.top_token_ids)) == num_top
    assert list(got.top_logprobs) == sorted(got.top_logprobs, reverse=True)
    for top, logprob in zip(got.top_token_ids, got.top_logprobs, strict=True):
        assert logprob == pytest.approx(float(want[top]), abs=1e-5)
    rest = set(range(len(values))) - set(got.top_token_ids)
    if num_top and rest:
        assert got.top_logprobs[-1] >= max(float(want[other]) for other in rest) - 1e-5


WARM = SamplingParams(temperature=1.0, top_k=4)


def test_rows_are_sampled_as_each_would_be_alone() -> None:
    """Greedy and warm ones side by side, each from its own generator."""
    logits = torch.randn(6, 20, generator=torch.Generator().manual_seed(0)) * 3
    params = [SamplingParams(), WARM, SamplingParams(temperature=0.7, top_p=0.9), SamplingParams(), WARM, WARM]

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(6)]

    want = [int(sample(*each)) for each in zip(logits, params, generators(), strict=True)]
    assert draw_rows(logits, list(zip(params, generators(), strict=True))).read() == want


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_no_numbers_has_no_token_and_leaves_the_others_theirs(wrong: float) -> None:
    logits = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    sane = draw_rows(logits, [(SamplingParams(), None)] * 4).read()
    logits[1, 3] = logits[2, 0] = wrong
    rows = [(params, torch.Generator().manual_seed(0)) for params in (SamplingParams(), WARM, SamplingParams(), WARM)]
    got = draw_rows(logits, rows).read()
    assert got[1] is got[2] is None
    assert got[0] == sane[0]
    assert got[3] == int(sample(logits[3], WARM, torch.Generator().manual_seed(0)))
