"""A replica's backlog as a message of its lease grants, and back."""

from __future__ import annotations

import math

from services.backlog import Backlog, DecodingTurn, PendingTurn
from services.pb.swaa.v1 import replica_pb2 as pb


def backlog_message(backlog: Backlog) -> pb.Backlog:
    """A backlog as a message."""
    pending = [
        pb.PendingTurn(
            request_id=turn.request_id,
            num_tokens=turn.num_tokens,
            work_ms=turn.work_ms,
            due_in_ms=turn.due_in_ms,
            priority=turn.priority,
            ready_in_ms=turn.ready_in_ms,
            tpot_ms=turn.tpot_ms,
            answer_tokens=turn.answer_tokens,
            answer_ms=turn.answer_ms,
            chunk_ms=turn.chunk_ms,
        )
        for turn in backlog.pending
    ]
    decoding = [
        pb.DecodingTurn(
            request_id=turn.request_id, tpot_ms=turn.tpot_ms, priority=turn.priority, left_tokens=turn.left_tokens
        )
        for turn in backlog.decoding
    ]
    return pb.Backlog(
        pending=pending,
        decoding=decoding,
        decode_step_ms=backlog.decode_step_ms,
        age_ms=backlog.age_ms,
        arrivals_per_s=backlog.arrivals_per_s,
        interrupt_tokens=backlog.interrupt_tokens,
        num_layers=backlog.num_layers,
    )


def backlog_from(message: pb.Backlog) -> Backlog:
    """The backlog of a message."""
    return Backlog(
        pending=tuple(
            PendingTurn(
                turn.request_id,
                turn.num_tokens,
                turn.work_ms,
                turn.due_in_ms if turn.HasField("due_in_ms") else None,
                turn.priority,
                turn.ready_in_ms,
                turn.tpot_ms if turn.HasField("tpot_ms") else None,
                turn.answer_tokens,
                turn.answer_ms,
                turn.chunk_ms,
            )
            for turn in message.pending
        ),
        decoding=tuple(
            DecodingTurn(
                turn.request_id,
                turn.tpot_ms if turn.HasField("tpot_ms") else None,
                turn.priority,
                turn.left_tokens if turn.HasField("left_tokens") else math.inf,
            )
            for turn in message.decoding
        ),
        decode_step_ms=message.decode_step_ms,
        age_ms=message.age_ms,
        arrivals_per_s=message.arrivals_per_s,
        interrupt_tokens=message.interrupt_tokens,
        num_layers=message.num_layers,
    )
