"""What turns take beside the engine is learnt from those that have ended, and told to the next."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.errors import ReplicaLost
from services.gateway.turn_overhead import MEMORY_TURNS, TurnOverhead
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.pb.swaa.v1 import long_context_pb2_grpc as pb_grpc
from services.replica.job import Event, Job
from tests.services.replica.builders import asynchronous
from tests.services.tiny_service import tiny_service

PREFILL_MS = 20.0
NOTHING: tuple[Event, ...] = ()


def learnt(*beside_ms: float) -> float:
    overhead = TurnOverhead()
    for each in beside_ms:
        overhead.learn(1.0 + each + 5.0 + PREFILL_MS, spent_ms=1.0, queue_ms=5.0, prefill_ms=PREFILL_MS)
    return round(overhead.ms, 6)


def test_it_is_what_is_neither_planning_nor_the_queue_nor_the_engine() -> None:
    assert TurnOverhead().ms == 0.0, "nothing is known"
    assert learnt(3.0) == 3.0


def test_a_stall_moves_nothing_and_a_slower_host_is_believed() -> None:
    assert learnt(3.0, 3.0, 900.0, 3.0) == 3.0
    assert learnt(*[3.0] * MEMORY_TURNS, *[8.0] * (MEMORY_TURNS // 2 + 1)) == 8.0


def test_a_turn_without_a_first_token_of_the_engine_teaches_nothing() -> None:
    overhead = TurnOverhead()
    overhead.learn(500.0, spent_ms=1.0, queue_ms=0.0, prefill_ms=0.0)
    assert overhead.ms == 0.0


@given(st.lists(st.floats(-50.0, 1e6), min_size=1, max_size=40))
def test_it_is_never_negative_and_never_more_than_was_seen(beside_ms: list[float]) -> None:
    """Clocks of two hosts may differ."""
    assert 0.0 <= learnt(*beside_ms) <= max(0.0, *beside_ms) + 1e-3


@asynchronous
async def test_a_service_learns_it_and_predicts_by_it() -> None:
    async with tiny_service() as service:
        overhead = service.answers.turns.overhead
        request = pb.GenerateRequest(prompt=pb.Prompt(text="abc"), sampling=pb.Sampling(max_tokens=3))
        async with grpc.aio.insecure_channel(service.address) as channel:
            stub: Any = pb_grpc.LongContextStub(channel)  # type: ignore[no-untyped-call]
            events = [event async for event in stub.Generate(request)]
            assert overhead.ms > 0.0
            assert overhead.ms < events[-1].finish.timings.ttft_ms
            overhead.learn(1e6, spent_ms=0.0, queue_ms=0.0, prefill_ms=1.0)
            expected_ms = overhead.ms
            plan = await stub.Plan(pb.PlanRequest(prompt_tokens=3, max_tokens=3))
    assert plan.chosen.prediction.ttft_ms > expected_ms


@asynchronous
async def test_a_turn_that_lost_a_replica_teaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lost(job: Job) -> AsyncGenerator[Event, None]:
        monkeypatch.undo()
        for event in NOTHING:
            yield event
        raise ReplicaLost("gone")

    async with tiny_service() as service:
        monkeypatch.setattr(service.replica, "generate", lost)
        request = pb.GenerateRequest(prompt=pb.Prompt(text="abc"), sampling=pb.Sampling(max_tokens=3))
        async with grpc.aio.insecure_channel(service.address) as channel:
            stub: Any = pb_grpc.LongContextStub(channel)  # type: ignore[no-untyped-call]
            events = [event async for event in stub.Generate(request)]
            assert events[-1].HasField("finish")
            assert service.answers.turns.overhead.ms == 0.0
            _ = [event async for event in stub.Generate(request)]
            assert service.answers.turns.overhead.ms > 0.0
