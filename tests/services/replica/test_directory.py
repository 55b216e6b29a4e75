"""Leases of a replica: what is granted, which end by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from services.backlog import Backlog, PendingTurn
from services.pb.swaa.v1 import replica_pb2 as pb
from services.replica.directory import CHECKS, Directory
from services.replica.replica import Replica
from services.replica.wire_backlog import backlog_message
from swaa_runtime.errors import EngineFailed

from .builders import asynchronous

BACKLOG = Backlog((PendingTurn("r", 9, 10.0, None, 1),), decode_step_ms=3.0)


@dataclass
class FakeEngine:
    failure: EngineFailed | None = None

    def check_alive(self) -> None:
        if self.failure is not None:
            raise self.failure


@dataclass
class FakeReplica:
    """A replica as far as a directory looks at it."""

    queued_tokens: int = 0
    backlog: Backlog = BACKLOG
    num_turns: int = 0
    hot: tuple[str, str, int] = ("", "", 0)
    engine: FakeEngine = field(default_factory=FakeEngine)

    def is_hot(self, *session: Any) -> bool:
        return session == self.hot


def directory_of(replica: FakeReplica) -> Directory:
    return Directory(cast(Replica, replica), "r#1", "127.0.0.1:1", lambda: pb.ModelFacts(fingerprint="f"))


class Held:
    """A lease that somebody holds, as Serve does: by waiting for the message after the grant."""

    def __init__(self, directory: Directory, request: pb.LeaseRequest | None = None) -> None:
        self.stream: AsyncGenerator[pb.LeaseGrant, None] = directory.lease(request or pb.LeaseRequest())

    async def start(self) -> pb.LeaseGrant:
        grant = await anext(self.stream)
        self.rest = asyncio.create_task(anext(self.stream, None))
        await asyncio.sleep(0)
        return grant

    async def has_ended(self) -> bool:
        await asyncio.sleep(0.01)
        return self.rest.done()


async def hold(directory: Directory, count: int) -> list[Held]:
    leases = [Held(directory) for _ in range(count)]
    for lease in leases:
        await lease.start()
    return leases


@asynchronous
async def test_a_grant_says_who_and_where_what_is_queued_and_whether_that_version_is_hot() -> None:
    directory = directory_of(FakeReplica(queued_tokens=7, hot=("t", "s", 3)))
    for version, is_hot in ((3, True), (2, False)):
        lease = Held(directory, pb.LeaseRequest(tenant="t", session_id="s", version=version))
        assert await lease.start() == pb.LeaseGrant(
            replica_id="r#1",
            address="127.0.0.1:1",
            queued_tokens=7,
            backlog=backlog_message(BACKLOG),
            is_hot=is_hot,
            model=pb.ModelFacts(fingerprint="f"),
        )
        lease.rest.cancel()


@asynchronous
async def test_a_grant_carries_the_model_facts_of_its_moment() -> None:
    facts = [pb.ModelFacts(cost_profile_json="later"), pb.ModelFacts(cost_profile_json="sooner")]
    directory = Directory(cast(Replica, FakeReplica()), "r#1", "127.0.0.1:1", facts.pop)
    for profile in ("sooner", "later"):
        lease = Held(directory)
        assert (await lease.start()).model.cost_profile_json == profile
        lease.rest.cancel()


@asynchronous
async def test_a_lease_is_held_until_it_is_cancelled() -> None:
    directory = directory_of(FakeReplica())
    first, second = await hold(directory, 2)
    assert directory.num_held == 2
    first.rest.cancel()
    assert await first.has_ended()
    assert not await second.has_ended()
    assert directory.num_held == 1
    second.rest.cancel()


@asynchronous
async def test_leases_without_a_turn_for_several_checks_are_ended_oldest_first() -> None:
    replica = FakeReplica(num_turns=2)
    directory = directory_of(replica)
    leases = await hold(directory, 3)
    for _ in range(CHECKS - 1):
        directory.check()
        assert not await leases[0].has_ended()
    directory.check()
    assert [await lease.has_ended() for lease in leases] == [True, False, False]
    for _ in range(3 * CHECKS):
        directory.check()
    assert not any([await lease.has_ended() for lease in leases[1:]]), "these two have turns"


@asynchronous
async def test_a_turn_that_has_yet_to_start_costs_nobody_a_lease() -> None:
    replica = FakeReplica()
    directory = directory_of(replica)
    [lease] = await hold(directory, 1)
    for num_turns in (0, 0, 1, 0, 0, 1):
        replica.num_turns = num_turns
        directory.check()
    assert not await lease.has_ended()
    lease.rest.cancel()


@asynchronous
async def test_on_a_failed_engine_the_check_fails_and_all_leases_end() -> None:
    replica = FakeReplica(num_turns=2)
    directory = directory_of(replica)
    leases = await hold(directory, 2)
    replica.engine.failure = EngineFailed("it is stuck")
    with pytest.raises(EngineFailed, match="stuck"):
        directory.check()
    assert all([await lease.has_ended() for lease in leases])
    assert directory.num_held == 0
