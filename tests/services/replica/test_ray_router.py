"""Whom the router asks first. That Serve asks in this order is shown in tests/cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve.request_router import PendingRequest, RunningReplica

from services.replica.ray_router import QUEUED_TOKENS, SessionRouter

DEPLOYMENT = DeploymentID(name="swaa", app_name="swaa")


@dataclass
class FakeReplica:
    """A running replica as far as the router looks at it."""

    replica_id: ReplicaID
    routing_stats: dict[str, Any] = field(default_factory=dict)
    max_ongoing_requests: int = 8

    async def get_queue_len(self, *, deadline_s: float) -> int:
        return 0


def ranks_of(queued: Mapping[str, int | None], session_id: str) -> list[list[str]]:
    """The router's order for one request, given what replicas have said of their queues."""

    async def run() -> list[list[str]]:
        router = SessionRouter(  # type: ignore[no-untyped-call]
            deployment_id=DEPLOYMENT,
            handle_source=DeploymentHandleSource.REPLICA,
            self_actor_handle=None,
            use_replica_queue_len_cache=True,
        )
        router.initialize_state()
        replicas = [
            cast(
                RunningReplica,
                FakeReplica(ReplicaID(name, DEPLOYMENT), {} if tokens is None else {QUEUED_TOKENS: tokens}),
            )
            for name, tokens in queued.items()
        ]
        router.update_replicas(replicas)
        metadata = RequestMetadata(request_id="r", internal_request_id="i", session_id=session_id)
        request = PendingRequest(args=[], kwargs={}, metadata=metadata)
        ranks = await router.choose_replicas(replicas, request)
        assert request.routing_context.should_backoff, "else the router spins while all are full"
        return [[replica.replica_id.unique_id for replica in rank] for rank in ranks]

    return asyncio.run(run())


def test_without_a_session_all_are_compared_at_once_those_with_short_queues_first() -> None:
    assert ranks_of({"a": 500, "b": 20, "c": 3000, "new": None}, "") == [["new", "b", "a", "c"]]


def test_equals_are_in_no_fixed_order() -> None:
    assert len({ranks_of({"a": 1, "b": 1, "c": 1}, "")[0][0] for _ in range(40)}) == 3


def test_no_replica_gives_no_rank() -> None:
    assert ranks_of({}, "") == []


def test_a_session_has_one_replica_whatever_is_queued_there_and_others_only_if_that_is_full() -> None:
    [first], *others = ranks_of({"a": 0, "b": 0, "c": 0}, "some session")
    queued = {name: 10_000 if name == first else 0 for name in "abc"}
    assert ranks_of(queued, "some session") == [[first], *others]
    assert sorted(name for rank in others for name in rank) == sorted({"a", "b", "c"} - {first})


def test_a_session_keeps_its_replica_when_another_goes() -> None:
    sessions = [f"session {n}" for n in range(20)]
    before = {session: ranks_of({"a": 0, "b": 0, "c": 0}, session)[0] for session in sessions}
    for session, [first] in before.items():
        if first != "c":
            assert ranks_of({"a": 0, "b": 0}, session)[0] == [first]
