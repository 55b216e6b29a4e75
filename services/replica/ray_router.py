"""Which replica a lease goes to: a session always to the same, by consistent hashing; else where least is to do."""

from __future__ import annotations

import random

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import PendingRequest, RunningReplica

QUEUED_TOKENS = "queued_tokens"
"""What replicas say of themselves (`record_routing_stats`): prompt tokens that are not computed yet."""


class SessionRouter(ConsistentHashRouter):
    """Serve's hash ring for requests with a session id. The base class hashes those without, too, whatever the load."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Groups of replicas to try in this order.

        In a group Serve takes the one with the fewest leases, of equal ones the first: that with the fewest queued
        tokens, which are a second or so old. All replicas are compared, not two as is usual: a lease lasts as long as
        a long prompt takes, so a bad choice costs more than a look at each.
        """
        if pending_request is None or pending_request.metadata.session_id:
            ranks: list[list[RunningReplica]] = await super().choose_replicas(candidate_replicas, pending_request)
            return ranks
        pending_request.routing_context.should_backoff = True  # if all are full, wait a little before the next look
        # Equal ones in random order: the proxies of several nodes shall not all pick the same.
        replicas = random.sample(candidate_replicas, len(candidate_replicas))
        return [sorted(replicas, key=_queued_tokens)] if replicas else []


def _queued_tokens(replica: RunningReplica) -> float:
    """Of a new replica that has not said anything yet: none."""
    return float(replica.routing_stats.get(QUEUED_TOKENS, 0))
