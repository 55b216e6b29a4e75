"""Who is served first. Pure functions of requests, the time, and what is left to do.

slack = time until the first token is due - predicted time until it could come

Those that can still meet their due time come first, least slack first; requests without one have endless slack. Behind
them come those that are late already, whatever is done. Ties go by priority, then by arrival.
"""

from __future__ import annotations

import math

from swaa_runtime.request import Request

SLACK_GRAIN_MS = 250.0
"""Slack within the first grain is a tie, and each further grain is as long as all before it together.

Two that are equally urgent would else take turns, and both come too late. And with a minute left a second says nothing
of who needs it more: whoever came first goes first, and what it was told of its wait holds.
"""

Urgency = tuple[bool, float, int, float]
"""Sorts the most urgent first."""


def slack_ms(due_s: float | None, now_s: float, remaining_ms: float) -> float:
    """How long a request may still do nothing and be in time; negative: it is late. Endless if nothing is due."""
    return math.inf if due_s is None else (due_s - now_s) * 1e3 - remaining_ms


def urgency(request: Request, slack: float) -> Urgency:
    """Sort key of a request that has so much slack, in ms."""
    return (slack < 0, grain(slack), -request.priority, request.arrival_s)


def grain(slack: float) -> float:
    """In which grain a slack lies; all that is late is in the first."""
    if slack < SLACK_GRAIN_MS or math.isinf(slack):
        return 0.0 if slack < SLACK_GRAIN_MS else slack
    return float(math.frexp(slack / SLACK_GRAIN_MS)[1])
