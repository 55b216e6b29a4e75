"""A replica's backlog as a message of its lease grants, and back."""

from __future__ import annotations

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
        )
        for turn in backlog.pending
    ]
    decoding = [
        pb.DecodingTurn(request_id=turn.request_id, tpot_ms=turn.tpot_ms, priority=turn.priority)
        for turn in backlog.decoding
    ]
    return pb.Backlog(pending=pending, decoding=decoding, decode_step_ms=backlog.decode_step_ms, age_ms=backlog.age_ms)


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
            )
            for turn in message.pending
        ),
        decoding=tuple(
            DecodingTurn(turn.request_id, turn.tpot_ms if turn.HasField("tpot_ms") else None, turn.priority)
            for turn in message.decoding
        ),
        decode_step_ms=message.decode_step_ms,
        age_ms=message.age_ms,
    )
