"""A turn's part of its trace.

gateway.answer ──▶ replica.turn ─┬─ replica.queue, replica.prefill, replica.decode
                                 └─ store.restore, store.save
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from services.replica.job import Job
from services.sessions.store import SegmentRef
from services.telemetry.tracing import Span, Tracing
from swaa_runtime.outputs import Finished


def turn_span(tracing: Tracing, job: Job) -> Span:
    """All that a replica does for a job."""
    return tracing.span(
        "replica.turn",
        job.trace_headers,
        request_id=job.request_id,
        recipe=job.recipe_name,
        prompt_tokens=len(job.prompt_token_ids),
    )


def restore_span(turn: Span, segments: Sequence[SegmentRef]) -> Span:
    """Fetching of saved KV."""
    num_bytes = sum(segment.num_bytes for segment in segments)
    return turn.child("store.restore", "client", segments=len(segments), bytes=num_bytes)


def tell_phases(turn: Span, finished: Finished) -> None:
    """What the engine did when, of a turn that ended now."""
    admitted_s, first_token_s = finished.admitted_s, finished.first_token_s
    if admitted_s is None:
        return
    turn.past("replica.queue", finished.arrival_s, admitted_s)
    if first_token_s is None:
        return
    turn.past("replica.prefill", admitted_s, first_token_s, restored_tokens=finished.num_restored_tokens)
    turn.past("replica.decode", first_token_s, time.monotonic(), peak_blocks=finished.peak_blocks)
