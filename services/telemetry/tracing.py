"""Traces: spans that are passed on by hand, and W3C's headers where they cross a wire. Only OpenTelemetry's API.

No span has text of prompts or answers in it, nor messages of errors, which may quote them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Literal, Self

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Headers = Iterable[tuple[str, str | bytes]]
"""Names in lower case."""

TraceHeaders = tuple[tuple[str, str], ...]
"""`traceparent`, and `tracestate` if there is one: HTTP headers or gRPC metadata."""

Kind = Literal["internal", "client", "server"]
Attribute = str | int | float | bool

TRACER = "swaa"
W3C = TraceContextTextMapPropagator()
W3C_NAMES = frozenset(W3C.fields)

GONE = (asyncio.CancelledError, GeneratorExit)
"""Whoever asked has gone away. That is no error."""


def trace_headers(headers: Headers) -> TraceHeaders:
    """Those that are about traces."""
    return tuple((name, value) for name, value in headers if name in W3C_NAMES and isinstance(value, str))


class Span:
    """One part of a trace, from now until `end` or the end of the context. Belongs to one task at a time."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span
        self._context = trace.set_span_in_context(span, Context())

    @property
    def headers(self) -> TraceHeaders:
        """What makes spans at the other end of a wire children of this one. Empty without a trace."""
        carrier: dict[str, str] = {}
        W3C.inject(carrier, self._context)
        return tuple(carrier.items())

    @property
    def trace_id(self) -> str:
        """32 hex digits; empty without a trace."""
        context = self._span.get_span_context()
        return trace.format_trace_id(context.trace_id) if context.is_valid else ""

    def child(self, name: str, kind: Kind = "internal", **attributes: Attribute) -> Span:
        """A part of this one, from now."""
        return Span(self._tracer, _start(self._tracer, name, self._context, kind, attributes))

    def past(self, name: str, start_s: float, stop_s: float, **attributes: Attribute) -> None:
        """A part of this one that is over; times on the clock of time.monotonic."""
        offset_ns = time.time_ns() - time.monotonic_ns()
        span = self._tracer.start_span(
            name, self._context, attributes=_named(attributes), start_time=offset_ns + int(start_s * 1e9)
        )
        span.end(offset_ns + int(stop_s * 1e9))

    def note(self, **attributes: Attribute) -> None:
        """Say more about it."""
        self._span.set_attributes(_named(attributes))

    def event(self, name: str, **attributes: Attribute) -> None:
        """Something happened, now."""
        self._span.add_event(name, _named(attributes))

    def fail(self, error: BaseException) -> None:
        """It ends by an error, of which the kind is told, or because whoever asked has gone."""
        if isinstance(error, GONE):
            self.note(cancelled=True)
            return
        self._span.set_attribute("error.type", type(error).__name__)
        self._span.set_status(Status(StatusCode.ERROR, type(error).__name__))

    def end(self) -> None:
        """It is over."""
        self._span.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.fail(error)
        self.end()


class Tracing:
    """Starts spans that have no parent in this process."""

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        """`provider`: where spans go; None: nowhere, but headers are passed on as they came."""
        self._tracer = (provider or trace.NoOpTracerProvider()).get_tracer(TRACER)

    def span(self, name: str, headers: Headers = (), kind: Kind = "server", **attributes: Attribute) -> Span:
        """A span from now; the caller's child if `headers` say who that is. Damaged ones say nothing (W3C)."""
        return self._started(W3C.extract(dict(trace_headers(headers)), Context()), name, kind, attributes)

    def span_here(self, name: str, kind: Kind = "client", **attributes: Attribute) -> Span:
        """A child of the program's own current span, if it traces with OpenTelemetry: for libraries in it."""
        return self._started(get_current(), name, kind, attributes)

    def _started(self, context: Context, name: str, kind: Kind, attributes: Mapping[str, Attribute]) -> Span:
        return Span(self._tracer, _start(self._tracer, name, context, kind, attributes))


def _start(
    tracer: trace.Tracer, name: str, context: Context, kind: Kind, attributes: Mapping[str, Attribute]
) -> trace.Span:
    return tracer.start_span(name, context, SpanKind[kind.upper()], _named(attributes))


def _named(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    """OpenTelemetry wants names of whoever makes them."""
    return {f"swaa.{name}": value for name, value in attributes.items()}
