"""Turns that were promised a replica's time and have no token yet, which its engine may not know of so far."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from services.backlog import Backlog, PendingTurn
from services.replica.job import Job

RECENT_TURNS = 16
"""The rate of arrivals is that of so many: a burst shows soon, and no single gap decides it."""

SHORTEST_S = 1.0
"""A few that come at once are no rate: they count as having come within this time."""


class Promises:
    """Jobs from the moment they are planned (or accepted) to their first token. Belongs to one event loop.

    So two requests that are planned at the same moment see each other, and one whose state is being fetched is seen by
    all.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._jobs: dict[str, tuple[Job, float]] = {}
        self._came_s: deque[float] = deque(maxlen=RECENT_TURNS)

    def add(self, job: Job) -> None:
        """A job has been promised to run from now on."""
        now_s = self._clock()
        self._jobs[job.request_id] = (job, now_s)
        self._came_s.append(now_s)

    def end(self, request_id: str) -> None:
        """Its first token is there, or it will not run. Nothing happens if that was known."""
        self._jobs.pop(request_id, None)

    def added_to(self, backlog: Backlog) -> Backlog:
        """A backlog with the promised turns that it does not tell of."""
        now_s, known = self._clock(), backlog.request_ids
        more = tuple(_pending(job, made_s, now_s) for job, made_s in self._jobs.values() if job.request_id not in known)
        rate = max(backlog.arrivals_per_s, self._arrivals_per_s(now_s))
        return replace(backlog, pending=(*backlog.pending, *more), arrivals_per_s=rate)

    def _arrivals_per_s(self, now_s: float) -> float:
        """From the oldest of the recent turns until now, that one not counted: a first one tells of no rate."""
        if len(self._came_s) < 2:
            return 0.0
        return (len(self._came_s) - 1) / max(now_s - self._came_s[0], SHORTEST_S)


def _pending(job: Job, made_s: float, now_s: float) -> PendingTurn:
    num_tokens, work_ms, fetch_ms = len(job.prompt_token_ids), 0.0, 0.0
    if job.restore is not None:
        num_tokens, work_ms, fetch_ms = max(1, job.restore.work_tokens), job.restore.work_ms, job.restore.fetch_ms
    return PendingTurn(
        job.request_id,
        num_tokens,
        work_ms,
        None if job.ttft_due_s is None else (job.ttft_due_s - now_s) * 1e3,
        job.priority,
        (made_s - now_s) * 1e3 + fetch_ms,
        job.tpot_ms,
        job.sampling.max_tokens,
    )
