"""Spans in memory."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class Spans:
    """A provider, and what its spans were."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def ended(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def clear(self) -> None:
        self._exporter.clear()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.ended if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def parents(self) -> dict[str, str | None]:
        """Names of spans, and of their parents; None for one whose parent is not here."""
        names = {_id(span.context): span.name for span in self.ended}
        return {span.name: names.get(_id(span.parent)) if span.parent else None for span in self.ended}

    def trace_ids(self) -> set[int]:
        return {span.context.trace_id for span in self.ended if span.context is not None}


def _id(context: object) -> int:
    return int(getattr(context, "span_id", 0))
