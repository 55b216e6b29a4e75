"""How many replicas there should be: as many as bring the wait for prefill down to a target."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from ray.serve.config import AutoscalingContext

PREDICTED_WAIT_S = "predicted_wait_s"
"""What replicas say of themselves (`record_autoscaling_stats`): time that the prompts queued there will take."""


def replicas_wanted(
    waits_s: Collection[float], num_replicas: int, held: float, waiting: float, target_wait_s: float, max_leases: int
) -> int:
    """Replicas that would do the queued prefill within `target_wait_s`, evenly spread; at least 1.

    Requests are not counted for this: one of 100,000 tokens is more work than a hundred of 500. Two things are not in
    the waits: a lease that waits for a place has told nobody its length, so it asks for one replica more; and answers
    that are being generated need places, `max_leases` a replica, so there are never fewer replicas than hold them.

    Args:
        waits_s: predicted wait of each replica, in seconds.
        num_replicas: how many there are now.
        held, waiting: leases that run, and those that wait for a place; means over a while, so fractions.
    """
    wanted = max(1, math.ceil(sum(waits_s) / target_wait_s), math.ceil(held / max_leases))
    return max(wanted, num_replicas + 1) if waiting >= 1 else wanted


class WaitPolicy:
    """`replicas_wanted` as Serve calls it. Serve adds the bounds and the delays that keep it from wavering."""

    def __init__(self, target_wait_s: float, max_leases: int) -> None:
        self._target_wait_s = target_wait_s
        self._max_leases = max_leases

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas, and a state that is not needed."""
        waits_s = (context.aggregated_metrics or {}).get(PREDICTED_WAIT_S, {}).values()
        wanted = replicas_wanted(
            waits_s,
            context.current_num_replicas,
            context.total_running_requests,
            context.total_queued_requests,
            self._target_wait_s,
            self._max_leases,
        )
        return wanted, {}
