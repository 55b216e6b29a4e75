"""The replica of an embedded service, leased: what it says of its cost is of that moment."""

from __future__ import annotations

import asyncio
from typing import cast

from services.gateway.replicas import LocalReplicas, RunningReplica
from services.replica.facts import ModelFacts
from swaa_runtime.shape import ModelShape

from .builders import BYTES_PER_TOKEN_LAYER, COST, NUM_LAYERS

SHAPE = ModelShape(NUM_LAYERS, 2, 1, BYTES_PER_TOKEN_LAYER // 4, 100, 4096, "bfloat16")
FACTS = ModelFacts("m", "test", "windowed", SHAPE, 4096, frozenset(), COST)


class IdleReplica:
    """A replica as far as a lease without a session looks at it."""


async def leased_costs(replicas: LocalReplicas, count: int) -> list[float]:
    costs = []
    for _ in range(count):
        async with replicas.lease(None) as lease:
            costs.append(lease.facts.cost.token_ms)
            assert lease.facts.cost.token_ms == costs[-1], "as long as it is held, it says the same"
    return costs


def test_a_lease_carries_the_cost_of_its_moment() -> None:
    learnt = iter([COST.corrected(2.0, 2.0, 1.0), COST.corrected(3.0, 3.0, 1.0)])
    replicas = LocalReplicas(cast(RunningReplica, IdleReplica()), FACTS, lambda: next(learnt))
    assert asyncio.run(leased_costs(replicas, 2)) == [2 * COST.token_ms, 3 * COST.token_ms]


def test_without_anything_learnt_the_facts_hold() -> None:
    replicas = LocalReplicas(cast(RunningReplica, IdleReplica()), FACTS)
    assert asyncio.run(leased_costs(replicas, 1)) == [COST.token_ms]
