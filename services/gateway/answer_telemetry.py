"""What becomes of answers, as metrics, a trace and one log line each. Never their text."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from services.errors import QuotaExceeded, RateExceeded, ReplicaLost, SlaUnattainable
from services.gateway.answers import Accepted, Answered
from services.gateway.catalog_metrics import CatalogMetrics
from services.gateway.catalog_source import Catalogs
from services.gateway.errors import status_name
from services.gateway.observer import AnswerWatch
from services.gateway.turns import Understood
from services.telemetry.metrics import AnswerMetrics, restore_kind
from services.telemetry.process import Telemetry
from services.telemetry.tracing import Headers, Span, TraceHeaders, Tracing
from swaa_runtime.errors import OutOfCapacity

logger = logging.getLogger(__name__)

UNKNOWN = "unknown"
"""Stands for the class of a request that could not be understood."""


class AnswerTelemetry:
    """An `Observer`."""

    def __init__(self, metrics: AnswerMetrics, tracing: Tracing) -> None:
        self._metrics = metrics
        self._tracing = tracing

    def answer(self, headers: Headers) -> AbstractContextManager[AnswerWatch]:
        """See `Observer`."""
        return _Watch(self._metrics, self._tracing.span("gateway.answer", headers))


def observer_of(telemetry: Telemetry, catalogs: Catalogs) -> AnswerTelemetry:
    """A gateway's part of what its process tells: of answers, and of the catalogue."""
    CatalogMetrics(telemetry.registry, catalogs)
    return AnswerTelemetry(AnswerMetrics(telemetry.registry), telemetry.tracing)


class _Watch:
    """An `AnswerWatch`, in whose body the answer is."""

    def __init__(self, metrics: AnswerMetrics, span: Span) -> None:
        self._metrics = metrics
        self._span = span
        self._sla_class = UNKNOWN
        self._is_replay = False
        self._ended = False

    @property
    def headers(self) -> TraceHeaders:
        return self._span.headers

    def step(self, name: str) -> AbstractContextManager[object]:
        return self._span.child(f"gateway.{name}")

    def understood(self, request: Understood) -> None:
        self._sla_class = request.objective.sla_class
        self._is_replay = request.saved is not None
        self._span.note(sla_class=self._sla_class, prompt_tokens=len(request.token_ids))

    def accepted(self, accepted: Accepted) -> None:
        prediction = accepted.planned.plan.chosen.prediction
        self._span.note(
            request_id=accepted.job.request_id,
            recipe=accepted.job.recipe_name,
            restore=prediction.restore.kind,
            predicted_ttft_ms=prediction.ttft_ms,
        )

    def failed_over(self) -> None:
        self._metrics.replicas_lost.inc()
        self._metrics.failovers.inc()
        self._span.event("failover")

    def answered(self, answered: Answered) -> None:
        self._ended = True
        done, timings = answered.done, answered.timings
        if not self._is_replay:  # else nothing was run, and its recipe may be another catalogue's
            self._count(answered)
        if done.session is not None:
            self._metrics.restores.labels(restore_kind(done.session.history)).inc()
        self._span.note(
            generated_tokens=done.num_generated_tokens,
            restored_tokens=done.num_restored_tokens,
            ttft_ms=timings.ttft_ms,
            tpot_ms=timings.tpot_ms,
            sla_met=not answered.misses,
        )
        _log(answered, self._span.trace_id)

    def _count(self, answered: Answered) -> None:
        metrics, done, timings = self._metrics, answered.done, answered.timings
        recipe, ttft_s = answered.job.recipe_name, timings.ttft_ms / 1e3
        metrics.ttft_s.labels(recipe, self._sla_class).observe(ttft_s)
        if done.num_generated_tokens > 1:
            metrics.tpot_s.labels(recipe, self._sla_class).observe(timings.tpot_ms / 1e3)
        metrics.queue_s.labels(self._sla_class).observe(timings.queue_ms / 1e3)
        metrics.prompt_tokens.labels(recipe).inc(answered.planned.work.prompt_tokens)
        metrics.generated_tokens.labels(recipe).inc(done.num_generated_tokens)
        metrics.restored_tokens.labels(recipe).inc(done.num_restored_tokens)
        metrics.sla.labels(recipe, self._sla_class, "false" if answered.misses else "true").inc()
        if done.session is not None:
            metrics.saves.labels("saved" if done.session.saved else "failed").inc()
            metrics.saved_bytes.inc(done.session.saved_bytes)
        if ttft_s > 0:
            predicted_s = answered.planned.plan.chosen.prediction.ttft_ms / 1e3
            metrics.prediction.labels(recipe).observe(predicted_s / ttft_s)

    def __enter__(self) -> Self:
        self._metrics.running.inc()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        failed = error if not self._ended else None  # whoever has its answer may close the iterator
        status = status_name(failed)
        self._metrics.running.dec()
        self._metrics.requests.labels(status, self._sla_class).inc()
        if isinstance(failed, ReplicaLost):
            self._metrics.replicas_lost.inc()
        if reason := _refusal(failed):
            self._metrics.refusals.labels(self._sla_class, reason).inc()
        self._span.note(status=status)
        if failed is not None:
            self._span.fail(failed)
            _log_failure(status, self._sla_class, self._span.trace_id)
        self._span.end()


def _refusal(error: BaseException | None) -> str:
    """Why a turn was not taken; empty if that is not how it ended."""
    match error:
        case SlaUnattainable():
            return "sla_never" if error.retry_after_ms is None else "sla_now"
        case OutOfCapacity():
            return "capacity"
        case RateExceeded():
            return "rate"
        case QuotaExceeded():
            return "quota"
        case _:
            return ""


def _log(answered: Answered, trace_id: str) -> None:
    job, done, timings = answered.job, answered.done, answered.timings
    session = job.session.session_id if job.session else ""
    identity = answered.planned.request.asked.identity
    tenant, prompt_tokens = identity.tenant, answered.planned.work.prompt_tokens
    logger.info(
        "request %s tenant %s session %s recipe %s prompt %d restored %d generated %d ttft %.0f ms tpot %.1f ms sla %s",
        job.request_id,
        tenant,
        session or "-",
        job.recipe_name,
        prompt_tokens,
        done.num_restored_tokens,
        done.num_generated_tokens,
        timings.ttft_ms,
        timings.tpot_ms,
        "missed" if answered.misses else "met",
        extra={
            "request_id": job.request_id,
            "trace_id": trace_id,
            "tenant": tenant,
            "subject": identity.subject,
            "session": session,
            "recipe": job.recipe_name,
            "sla_class": answered.planned.request.objective.sla_class,
            "status": "OK",
            "sla_met": not answered.misses,
            "prompt_tokens": prompt_tokens,
            "restored_tokens": done.num_restored_tokens,
            "generated_tokens": done.num_generated_tokens,
            "queue_ms": round(timings.queue_ms, 1),
            "ttft_ms": round(timings.ttft_ms, 1),
            "tpot_ms": round(timings.tpot_ms, 2),
            "predicted_ttft_ms": round(answered.planned.plan.chosen.prediction.ttft_ms, 1),
            "save_ms": round(timings.save_ms, 1),
            "total_ms": round(timings.total_ms, 1),
        },
    )


def _log_failure(status: str, sla_class: str, trace_id: str) -> None:
    extra = {"status": status, "sla_class": sla_class, "trace_id": trace_id}
    logger.info("request ended %s, class %s", status, sla_class, extra=extra)
