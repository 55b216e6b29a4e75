"""Where turns run: a replica is leased for a turn, and runs it. In this process, or anywhere in a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from services.backlog import Backlog
from services.cost import CostProfile
from services.replica.facts import ModelFacts
from services.replica.job import Event, Job, SessionUse
from services.replica.promises import Promises
from swaa_runtime.outputs import TokenOutput


class LeasedReplica(Protocol):
    """A replica that has been picked for a turn. The figures are of the moment it was picked."""

    @property
    def facts(self) -> ModelFacts:
        """What model it runs, and what that costs."""
        ...

    @property
    def backlog(self) -> Backlog:
        """What it has to do, with all that this gateway has promised its time to."""
        ...

    @property
    def is_hot(self) -> bool:
        """Whether the session's state is in its KV memory."""
        ...

    def promise(self, job: Job) -> None:
        """The turn of this lease will run there: whoever plans from now on reckons with it."""
        ...

    def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        """Run a turn; see `Replica.generate`. Raises ReplicaLost if the replica goes away meanwhile."""
        ...


class Replicas(Protocol):
    """All replicas of one model."""

    def lease(self, session: SessionUse | None) -> AbstractAsyncContextManager[LeasedReplica]:
        """Pick a replica for a turn and hold it in the body: the one that may have the session, or the least loaded.

        Raises ReplicaLost if there is none to be had.
        """
        ...


@dataclass(slots=True)
class TurnPromise:
    """What one lease has promised. Ends with the turn's first token, or with the lease."""

    promises: Promises
    request_id: str | None = None

    def __enter__(self) -> TurnPromise:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    def make(self, job: Job) -> None:
        """The turn has been planned."""
        self.promises.add(job)
        self.request_id = job.request_id

    async def kept_by(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
        """The turn's events, watched for its first token."""
        async with contextlib.aclosing(events):
            async for event in events:
                if isinstance(event, TokenOutput):
                    self.end()
                yield event

    def end(self) -> None:
        """Nobody has to reckon with it any more."""
        if self.request_id is not None:
            self.promises.end(self.request_id)


class RunningReplica(Protocol):
    """The part of `services.replica.replica.Replica` that this needs; it needs torch, this does not."""

    @property
    def backlog(self) -> Backlog:
        """What it has to do."""
        ...

    def is_hot(self, tenant: str, session_id: str, version: int) -> bool:
        """Whether this version of the session is in KV memory."""
        ...

    def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        """Run a turn."""
        ...


@dataclass(frozen=True, slots=True)
class _Local:
    facts: ModelFacts
    replica: RunningReplica
    is_hot: bool
    promise_of: TurnPromise

    @property
    def backlog(self) -> Backlog:
        return self.promise_of.promises.added_to(self.replica.backlog)

    def promise(self, job: Job) -> None:
        self.promise_of.make(job)

    def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        return self.promise_of.kept_by(self.replica.generate(job))


class LocalReplicas:
    """The one replica of an embedded service, in this process."""

    def __init__(
        self, replica: RunningReplica, facts: ModelFacts, cost: Callable[[], CostProfile] | None = None
    ) -> None:
        """`cost`: what turns cost now, as far as that has been learnt since; None: what `facts` say."""
        self._replica = replica
        self._facts = facts
        self._promises = Promises()
        self._cost = cost

    @contextlib.asynccontextmanager
    async def lease(self, session: SessionUse | None) -> AsyncIterator[LeasedReplica]:
        """See `Replicas`."""
        is_hot = session is not None and self._replica.is_hot(session.tenant, session.session_id, session.version)
        facts = self._facts if self._cost is None else replace(self._facts, cost=self._cost())
        with TurnPromise(self._promises) as promise:
            yield _Local(facts, self._replica, is_hot, promise)
