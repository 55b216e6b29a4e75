"""Who is served first. Pure functions of requests, the time, and what is left to do.

slack = time until the first token is due - predicted time until it could come

Those that can still meet their due time come first, least slack first; requests without one have endless slack. Behind
them come those that are late already, whatever is done. Ties go by priority, then by arrival.
"""

from __future__ import annotations

import math

from swaa_runtime.request import Request

SLACK_GRAIN_MS = 250.0
"""Slack within one such grain is a tie: two that are equally urgent would else take turns, and both come too late."""

Urgency = tuple[bool, float, int, float]
"""Sorts the most urgent first."""


def slack_ms(due_s: float | None, now_s: float, remaining_ms: float) -> float:
    """How long a request may still do nothing and be in time; negative: it is late. Endless if nothing is due."""
    return math.inf if due_s is None else (due_s - now_s) * 1e3 - remaining_ms


def urgency(request: Request, slack: float) -> Urgency:
    """Sort key of a request that has so much slack, in ms."""
    is_late = slack < 0
    grains = 0.0 if is_late else slack if math.isinf(slack) else slack // SLACK_GRAIN_MS
    return (is_late, grains, -request.priority, request.arrival_s)
