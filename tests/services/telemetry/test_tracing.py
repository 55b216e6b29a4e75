"""One trace from the client to the store; and what a span must not say."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace import StatusCode

from services.telemetry.tracing import Tracing, trace_headers

from .tracing import Spans

HERE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_headers_of_a_caller_make_it_the_parent() -> None:
    spans = Spans()
    with Tracing(spans.provider).span("answer", [("traceparent", HERE), ("tracestate", "a=b")]) as span:
        assert span.trace_id == "0af7651916cd43dd8448eb211c80319c"
        assert dict(span.headers)["tracestate"] == "a=b"
    ended = spans.one("answer")
    assert ended.parent is not None
    assert f"{ended.parent.span_id:x}" == "b7ad6b7169203331"


def test_without_a_provider_headers_are_passed_on_as_they_came() -> None:
    given = (("traceparent", HERE), ("tracestate", "a=b"))
    with Tracing().span("answer", given) as span, span.child("plan") as child:
        assert span.headers == child.headers == given
    assert Tracing().span("answer").headers == ()


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)), st.text() | st.binary())
def test_any_headers_are_taken(parent: str, state: str | bytes) -> None:
    headers = [("traceparent", parent), ("tracestate", state), ("x-swaa-sla", "balanced")]
    assert {name for name, _ in trace_headers(headers)} <= {"traceparent", "tracestate"}
    with Tracing(Spans().provider).span("answer", headers) as span:
        assert len(span.trace_id) == 32


def test_an_error_is_told_by_its_kind_only() -> None:
    spans = Spans()
    with pytest.raises(ValueError, match="secret"), Tracing(spans.provider).span("answer"):
        raise ValueError("the secret prompt")
    ended = spans.one("answer")
    assert ended.status.status_code is StatusCode.ERROR
    assert "secret" not in ended.to_json()
    assert "ValueError" in ended.to_json()


@pytest.mark.parametrize("gone", [asyncio.CancelledError, GeneratorExit])
def test_a_caller_that_goes_away_is_no_error(gone: type[BaseException]) -> None:
    spans = Spans()
    with pytest.raises(gone), Tracing(spans.provider).span("answer"):
        raise gone
    assert spans.one("answer").status.status_code is StatusCode.UNSET
    assert (spans.one("answer").attributes or {})["swaa.cancelled"] is True


def test_a_library_joins_the_span_of_the_program() -> None:
    spans = Spans()
    with spans.provider.get_tracer("program").start_as_current_span("program"):
        expected = trace.format_trace_id(trace.get_current_span().get_span_context().trace_id)
        with Tracing(spans.provider).span_here("client") as span:
            assert span.trace_id == expected
        with Tracing().span_here("client") as span:
            assert expected in dict(span.headers)["traceparent"]


def test_what_is_over_is_told_with_its_times() -> None:
    spans = Spans()
    with Tracing(spans.provider).span("turn") as span:
        span.past("queue", 100.0, 100.25)
    ended = spans.one("queue")
    assert ended.start_time is not None
    assert ended.end_time == ended.start_time + 250_000_000
    assert spans.parents()["queue"] == "turn"
