"""Leases of one replica: where it is, what it serves, and how many turns it has been promised."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable

from services.pb.swaa.v1 import replica_pb2 as pb
from services.replica.replica import Replica
from services.replica.wire_backlog import backlog_message
from swaa_runtime.errors import EngineFailed

CHECKS = 3
"""A lease without a turn is ended when it was so at this many checks in a row."""


class Directory:
    """Answers `swaa.v1.ReplicaDirectory`. A lease is for one turn, and lasts until its holder cancels it.

    Holders may be gone and yet not cancel: Serve's proxy loses a cancellation that comes while the grant is on its way
    (Ray 2.60; about one in ten of such). The replica would seem fuller with each. So leases that are more than there
    are turns, for a while, are ended here, the oldest first. Should that meet a lease which is in use, no harm is done:
    turns do not depend on it.
    """

    def __init__(self, replica: Replica, replica_id: str, address: str, model: Callable[[], pb.ModelFacts]) -> None:
        """`model`: what is served, and what that costs at the moment."""
        self._replica = replica
        self._replica_id = replica_id
        self._address = address
        self._model = model
        self._held: list[asyncio.Event] = []  # oldest first
        self._surplus: deque[int] = deque(maxlen=CHECKS)

    @property
    def num_held(self) -> int:
        """Leases that are held now."""
        return len(self._held)

    async def lease(self, request: pb.LeaseRequest) -> AsyncGenerator[pb.LeaseGrant, None]:
        """One grant, at once; then nothing until the holder cancels or the lease is ended."""
        ended = asyncio.Event()
        self._held.append(ended)
        try:
            yield pb.LeaseGrant(
                replica_id=self._replica_id,
                address=self._address,
                queued_tokens=self._replica.queued_tokens,
                backlog=backlog_message(self._replica.backlog),
                is_hot=self._replica.is_hot(request.tenant, request.session_id, request.version),
                model=self._model(),
            )
            await ended.wait()
        finally:
            self._held.remove(ended)

    def check(self) -> None:
        """To be called every few seconds: end leases that nobody uses.

        If the engine has failed or is stuck, all leases are ended, so that nobody waits for turns that will not.

        Raises:
            EngineFailed: this replica is of no use any more.
        """
        try:
            self._replica.engine.check_alive()
        except EngineFailed:
            self._end(self.num_held)
            raise
        self._surplus.append(self.num_held - self._replica.num_turns)
        if len(self._surplus) == CHECKS and (surplus := min(self._surplus)) > 0:
            self._end(surplus)
            self._surplus.clear()

    def _end(self, count: int) -> None:
        for ended in self._held[:count]:
            ended.set()
