"""What one gateway has promised is seen by whoever plans next."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from services.backlog import Backlog
from services.gateway.replicas import LocalReplicas
from services.replica.job import Event, Job
from swaa_runtime.outputs import PrefillProgress, TokenOutput
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import SamplingParams
from tests.services.replica.builders import asynchronous
from tests.services.replica.test_wire import FACTS

JOB = Job("a", (1, 2, 3), "full", Recipe(), SamplingParams())


class FakeReplica:
    """Idle as far as it knows."""

    backlog = Backlog()

    def is_hot(self, tenant: str, session_id: str, version: int) -> bool:
        return False

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        yield PrefillProgress(job.request_id, 3, 3, 0)
        yield TokenOutput(job.request_id, 7, "x", None)


@asynchronous
async def test_two_that_are_planned_at_the_same_moment_see_each_other_until_the_first_token() -> None:
    replicas = LocalReplicas(FakeReplica(), FACTS)
    async with replicas.lease(None) as first, replicas.lease(None) as second:
        first.promise(JOB)
        assert second.backlog.request_ids == {"a"}
        async with contextlib.aclosing(first.generate(JOB)) as events:
            await anext(events)
            assert second.backlog.request_ids == {"a"}
            await anext(events)
            assert second.backlog.request_ids == set()


@asynchronous
async def test_a_promise_ends_with_its_lease() -> None:
    replicas = LocalReplicas(FakeReplica(), FACTS)
    async with replicas.lease(None) as second:
        async with replicas.lease(None) as first:
            first.promise(JOB)
        assert second.backlog.request_ids == set()
