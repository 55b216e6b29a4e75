"""Figures of a load against the same figures worked out slowly, one request after another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.load.plots import write_plots
from services.load.report import PERCENTILES, make_group, make_report, percentiles
from services.load.results import OK, REFUSED, Result

MS = st.floats(1, 1e5)


@st.composite
def results(draw: st.DrawFn) -> Result:
    status = draw(st.sampled_from([OK, OK, OK, REFUSED, "UNAVAILABLE"]))
    ok = status == OK
    return Result(
        index=0,
        arrival_ms=10.0,
        sent_ms=draw(MS),
        sla_class=draw(st.sampled_from(["quality", "interactive"])),
        session="",
        status=status,
        recipe=draw(st.sampled_from(["full", "sliding"])) if ok else "",
        prompt_tokens=draw(st.integers(1, 1000)) if ok else 0,
        generated_tokens=draw(st.integers(1, 5)) if ok else 0,
        predicted_ttft_ms=draw(MS) if ok else 0.0,
        quality=draw(st.floats(0, 1)) if ok else 0.0,
        ttft_ms=draw(MS) if ok else 0.0,
        tpot_ms=draw(MS) if ok else 0.0,
        total_ms=draw(MS),
        met=ok and draw(st.booleans()),
        met_latency=ok and draw(st.booleans()),
    )


def slow_percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the nearest two of the sorted values."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@given(values=st.lists(MS, min_size=1, max_size=30))
def test_percentiles_are_linear_between_neighbours(values: list[float]) -> None:
    assert percentiles(values) == pytest.approx([slow_percentile(values, percent) for percent in PERCENTILES])


def test_percentiles_of_nothing_are_nothing() -> None:
    assert percentiles([]) == ()


@given(load=st.lists(results(), min_size=1, max_size=20))
def test_a_group_counts_what_a_slow_loop_counts(load: list[Result]) -> None:
    group = make_group(load, duration_s=2.0)
    met = refused = errors = ok = good_tokens = 0
    quality, ttft, off = 0.0, [], []
    for result in load:
        if result.status == OK:
            ok += 1
            quality += result.quality
            ttft.append(result.ttft_ms)
            off.append(abs(result.ttft_ms - result.predicted_ttft_ms) / result.ttft_ms)
        elif result.status == REFUSED:
            refused += 1
        else:
            errors += 1
        if result.met:
            met += 1
            good_tokens += result.prompt_tokens + result.generated_tokens
    assert (group.num_ok, group.num_refused, group.num_errors) == (ok, refused, errors)
    assert group.hit_rate == met / len(load)
    assert group.honest_rate == (met + refused) / len(load)
    assert group.goodput_tokens_s == good_tokens / 2.0
    assert group.mean_quality == pytest.approx(quality / ok if ok else 0.0)
    assert group.ttft_ms == pytest.approx([slow_percentile(ttft, p) for p in PERCENTILES] if ttft else ())
    assert group.ttft_error_median == pytest.approx(slow_percentile(off, 50) if off else 0.0)
    assert group.ttft_error_p95 == pytest.approx(slow_percentile(off, 95) if off else 0.0)


@given(load=st.lists(results(), min_size=1, max_size=20))
def test_classes_divide_all_requests_and_recipes_all_that_were_accepted(load: list[Result]) -> None:
    report = make_report(load)
    assert sum(group.num_requests for group in report.by_class.values()) == len(load)
    assert sum(group.num_requests for group in report.by_recipe.values()) == sum(bool(each.recipe) for each in load)
    assert report.duration_s == max(each.sent_ms + each.total_ms for each in load) / 1e3


def test_a_turn_of_one_token_has_no_tpot() -> None:
    one = Result(0, 0, 0, "quality", "", OK, ttft_ms=5.0, generated_tokens=1, total_ms=9.0)
    assert make_group([one], 1.0).tpot_ms == ()


def test_plots_are_png_files_whatever_was_answered(tmp_path: Path) -> None:
    answered = Result(0, 0, 0, "quality", "", OK, recipe="full", ttft_ms=5.0, objective_ttft_ms=9.0, total_ms=9.0)
    refused = Result(1, 0, 1, "interactive", "", REFUSED, total_ms=1.0)
    load = [answered, refused]
    paths = write_plots(tmp_path / "plots", load, make_report(load))
    assert [path.name for path in paths] == ["ttft_cdf.png", "timeline.png", "sla_hit.png", "goodput.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
