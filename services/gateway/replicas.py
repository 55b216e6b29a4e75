"""Where turns run: a replica is leased for a turn, and runs it. In this process, or anywhere in a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from services.cost import CostProfile
from services.replica.facts import ModelFacts
from services.replica.job import Event, Job, SessionUse


class LeasedReplica(Protocol):
    """A replica that has been picked for a turn. The figures are of the moment it was picked."""

    @property
    def facts(self) -> ModelFacts:
        """What model it runs, and what that costs."""
        ...

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens of all its turns that have not been computed yet."""
        ...

    @property
    def is_hot(self) -> bool:
        """Whether the session's state is in its KV memory."""
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


class RunningReplica(Protocol):
    """The part of `services.replica.replica.Replica` that this needs; it needs torch, this does not."""

    @property
    def queued_tokens(self) -> int:
        """See `LeasedReplica`."""
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

    @property
    def queued_tokens(self) -> int:
        return self.replica.queued_tokens

    def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        return self.replica.generate(job)


class LocalReplicas:
    """The one replica of an embedded service, in this process."""

    def __init__(
        self, replica: RunningReplica, facts: ModelFacts, cost: Callable[[], CostProfile] | None = None
    ) -> None:
        """`cost`: what turns cost now, as far as that has been learnt since; None: what `facts` say."""
        self._replica = replica
        self._facts = facts
        self._cost = cost

    @contextlib.asynccontextmanager
    async def lease(self, session: SessionUse | None) -> AsyncIterator[LeasedReplica]:
        """See `Replicas`."""
        is_hot = session is not None and self._replica.is_hot(session.tenant, session.session_id, session.version)
        facts = self._facts if self._cost is None else replace(self._facts, cost=self._cost())
        yield _Local(facts, self._replica, is_hot)
