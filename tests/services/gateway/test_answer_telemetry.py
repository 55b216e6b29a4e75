"""How an answer ended is counted once, as what it was."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from services.errors import QuotaExceeded, ReplicaLost, SlaUnattainable
from services.gateway.answer_telemetry import AnswerTelemetry
from services.telemetry.metrics import RESTORES, AnswerMetrics, restore_kind
from services.telemetry.tracing import Tracing
from swaa_runtime.errors import EngineFailed, InvalidRequest, OutOfCapacity
from tests.services.telemetry.tracing import Spans


def ended_by(error: BaseException, failovers: int = 0) -> CollectorRegistry:
    registry = CollectorRegistry()
    observer = AnswerTelemetry(AnswerMetrics(registry), Tracing())

    def fail() -> None:
        with observer.answer(()) as watch:
            for _ in range(failovers):
                watch.failed_over()
            raise error

    with pytest.raises(type(error)):
        fail()
    assert registry.get_sample_value("swaa_answers_running") == 0
    return registry


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (SlaUnattainable("x", 5.0, 10.0), None, "sla_now"),
        (SlaUnattainable("x"), None, "sla_never"),
        (OutOfCapacity("x"), "RESOURCE_EXHAUSTED", "capacity"),
        (QuotaExceeded("x"), "RESOURCE_EXHAUSTED", "quota"),
        (InvalidRequest("x", 1, "y"), "INVALID_ARGUMENT", None),
        (EngineFailed("x"), "UNAVAILABLE", None),
        (RuntimeError("x"), "INTERNAL", None),
        (asyncio.CancelledError(), "CANCELLED", None),
        (GeneratorExit(), "CANCELLED", None),
    ],
)
def test_an_error_is_a_status_and_maybe_a_refusal(error: BaseException, status: str | None, reason: str | None) -> None:
    registry = ended_by(error)
    samples = [sample for family in registry.collect() for sample in family.samples if sample.value]
    statuses = [sample.labels["status"] for sample in samples if sample.name == "swaa_requests_total"]
    refusals = [sample.labels["reason"] for sample in samples if sample.name == "swaa_refusals_total"]
    assert len(statuses) == 1
    assert status is None or statuses == [status]
    assert refusals == ([] if reason is None else [reason])


def test_every_lost_replica_is_counted_and_every_turn_that_went_on() -> None:
    registry = ended_by(ReplicaLost("x"), failovers=4)
    assert registry.get_sample_value("swaa_replicas_lost_total") == 5
    assert registry.get_sample_value("swaa_failovers_total") == 4


def test_a_failover_is_seen_in_the_trace() -> None:
    spans = Spans()
    observer = AnswerTelemetry(AnswerMetrics(CollectorRegistry()), Tracing(spans.provider))
    with observer.answer(()) as watch:
        watch.failed_over()
    assert [event.name for event in spans.one("gateway.answer").events] == ["failover"]


@pytest.mark.parametrize(
    ("history", "kind"),
    [
        ("hot", "hot"),
        ("recomputed: only its tokens are saved", "recomputed"),
        ("mixed: 12 tokens computed while the rest was loaded", "mixed"),
        ("prefix: 3 tokens from another session", "prefix"),
        ("something new: x", "other"),
    ],
)
def test_kinds_of_restores(history: str, kind: str) -> None:
    assert restore_kind(history) == kind
    assert kind in (*RESTORES, "other")
