"""Mixes as they are written, traces as they are drawn, and files that give back what was written."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.load.trace import (
    TraceRequest,
    TraceSpec,
    make_trace,
    parse_names,
    parse_numbers,
    read_trace,
    write_trace,
)
from swaa_runtime.errors import InvalidRequest

SPEC = TraceSpec(
    rate_per_s=10.0,
    duration_s=60.0,
    prompt_tokens=parse_numbers("lengths", "100:0.5,1000-2000:0.5"),
    max_tokens=parse_numbers("max_tokens", "8,16"),
    sla_classes=parse_names("classes", "interactive:0.75,quality:0.25"),
    seed=3,
)

REQUESTS = st.builds(
    TraceRequest,
    arrival_ms=st.floats(0, 1e7),
    prompt_tokens=st.integers(1, 10**6),
    max_tokens=st.integers(1, 10**5),
    headers=st.dictionaries(st.sampled_from(["x-swaa-sla", "x-slo-ttft-ms"]), st.text(min_size=1, max_size=8)),
    session=st.text(max_size=5),
)


def test_a_mix_draws_by_weight_and_evenly_within_a_range() -> None:
    mix = parse_numbers("lengths", "10:3, 20-21:1")
    rng = random.Random(0)
    counts = Counter(mix.number(rng) for _ in range(4000))
    assert set(counts) == {10, 20, 21}
    assert counts[10] == pytest.approx(3000, abs=150)
    assert counts[20] == pytest.approx(500, abs=120)


@pytest.mark.parametrize("text", ["", "a:1", "5:0", "5:x", "5:-1", "0:1", "9-5:1", "5:inf", "5:1,,6:1", "-5"])
def test_a_mix_that_does_not_parse_is_named(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_numbers("lengths", text)
    assert caught.value.field == "lengths"


def test_a_trace_depends_on_its_spec_only_and_has_what_the_spec_says() -> None:
    trace = make_trace(SPEC)
    assert trace == make_trace(SPEC)
    assert trace != make_trace(replace(SPEC, seed=4))
    assert len(trace) == pytest.approx(600, abs=150)
    assert {request.max_tokens for request in trace} == {8, 16}
    assert all(request.prompt_tokens == 100 or 1000 <= request.prompt_tokens <= 2000 for request in trace)
    assert {request.headers["x-swaa-sla"] for request in trace} == {"interactive", "quality"}
    assert not any(request.session for request in trace)


def test_another_rate_asks_the_same_questions_in_the_same_order() -> None:
    slow, fast = make_trace(SPEC), make_trace(replace(SPEC, rate_per_s=20.0))
    assert len(fast) > len(slow)
    contents = [(request.prompt_tokens, request.max_tokens, request.headers) for request in fast[: len(slow)]]
    assert contents == [(request.prompt_tokens, request.max_tokens, request.headers) for request in slow]


def test_conversations_have_no_more_turns_than_asked_for_and_follow_ups_are_short() -> None:
    trace = make_trace(replace(SPEC, sessions_share=0.5, session_turns=3, prompt_tokens=parse_numbers("l", "1000")))
    turns = Counter(request.session for request in trace if request.session)
    assert sum(turns.values()) == pytest.approx(len(trace) / 2, abs=80)
    assert max(turns.values()) == 3
    seen: set[str] = set()
    for request in trace:
        assert request.prompt_tokens == (100 if request.session and request.session in seen else 1000)
        seen.add(request.session)


@given(trace=st.lists(REQUESTS, min_size=1, max_size=8))
def test_a_written_trace_is_read_back_in_order_of_arrival(
    tmp_path_factory: pytest.TempPathFactory, trace: list[TraceRequest]
) -> None:
    path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    write_trace(path, trace)
    assert read_trace(path) == sorted(trace, key=lambda request: request.arrival_ms)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"trace\.jsonl:2: line"),
        ('{"arrival_ms": -1, "prompt_tokens": 1, "max_tokens": 1}', r":2: arrival_ms is -1"),
        ('{"arrival_ms": 1, "prompt_tokens": 0, "max_tokens": 1}', r":2: prompt_tokens is 0"),
        ('{"arrival_ms": 1, "prompt_tokens": 1}', r":2: max_tokens"),
        ('{"arrival_ms": 1, "prompt_tokens": 1, "max_tokens": 1, "colour": 2}', r":2: colour"),
        (
            '{"arrival_ms": 1, "prompt_tokens": 1, "max_tokens": 1, "headers": {"x-swaa-session": "new"}}',
            r":2: headers is 'x-swaa-session': name the conversation in `session`",
        ),
    ],
)
def test_a_bad_line_is_named_by_number_field_and_value(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"arrival_ms": 1, "prompt_tokens": 1, "max_tokens": 1}\n' + line, encoding="utf-8")
    with pytest.raises(InvalidRequest, match=message):
        read_trace(path)


def test_a_trace_without_requests_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(InvalidRequest, match="must have at least one request"):
        read_trace(path)


def test_shares_out_of_bounds_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="sessions_share"):
        replace(SPEC, sessions_share=1.5)
    with pytest.raises(InvalidRequest, match="x-swaa-session"):
        replace(SPEC, headers={"x-swaa-session": "new"})
