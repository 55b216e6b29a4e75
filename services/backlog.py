"""What a replica has to do yet, as it tells gateways. Plain data; `services.forecast` says what follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from swaa_runtime.load import EngineLoad


@dataclass(frozen=True, slots=True)
class PendingTurn:
    """A turn without a token yet.

    Attributes:
        num_tokens: to compute until its first token.
        work_ms: predicted time that takes, had the turn the engine for itself.
        chunk_ms: of that, what each step takes more than it would for others, however few of these tokens it computes.
        due_in_ms: when that token is due, negative if that is past; None: at no particular time.
        ready_in_ms: when it can run: later than now if its state is on its way in, negative if it could already.
        tpot_ms: time per token that it aims at once it has its first; answer_tokens: how many it may generate.
        answer_ms: predicted time that each of those adds to a step. 0, as `chunk_ms`, where nobody has predicted it.
    """

    request_id: str
    num_tokens: float
    work_ms: float
    due_in_ms: float | None
    priority: int
    ready_in_ms: float = 0.0
    tpot_ms: float | None = None
    answer_tokens: int = 1
    answer_ms: float = 0.0
    chunk_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class DecodingTurn:
    """A turn that generates tokens, at `tpot_ms` each if it aims at that, and `left_tokens` more at most."""

    request_id: str
    tpot_ms: float | None
    priority: int
    left_tokens: float = math.inf


@dataclass(frozen=True, slots=True)
class Backlog:
    """All turns of one replica.

    Attributes:
        pending: in the order they came.
        decode_step_ms: predicted time of a step that runs one token for each of `decoding` and nothing else.
        age_ms: how long ago a step began, the last that is known of.
        arrivals_per_s: how many turns come, as of late.
        interrupt_tokens: newcomers with at most so many tokens may interrupt a step that runs as many; 0: none.
        num_layers: of the model, between which they can; 0 where nobody has told.
    """

    pending: tuple[PendingTurn, ...] = ()
    decoding: tuple[DecodingTurn, ...] = ()
    decode_step_ms: float = 0.0
    age_ms: float = 0.0
    arrivals_per_s: float = 0.0
    interrupt_tokens: int = 0
    num_layers: int = 0

    @property
    def request_ids(self) -> frozenset[str]:
        """Of all its turns."""
        return frozenset([turn.request_id for turn in self.pending] + [turn.request_id for turn in self.decoding])

    @property
    def pending_ms(self) -> float:
        """Predicted time of all that is pending."""
        return sum(turn.work_ms for turn in self.pending)

    def aged(self, elapsed_ms: float) -> Backlog:
        """The same figures when so much time has passed since."""
        pending = tuple(
            replace(
                turn,
                due_in_ms=None if turn.due_in_ms is None else turn.due_in_ms - elapsed_ms,
                ready_in_ms=turn.ready_in_ms - elapsed_ms,
            )
            for turn in self.pending
        )
        return replace(self, pending=pending, age_ms=self.age_ms + elapsed_ms)

    def with_turn(self, turn: PendingTurn) -> Backlog:
        """The same with one turn more, the last to come."""
        return replace(self, pending=(*self.pending, turn))


def backlog_of(load: EngineLoad, now_s: float) -> Backlog:
    """What an engine told of itself, as it looks now (on the engine's clock)."""
    age_ms = max(0.0, (now_s - load.taken_s) * 1e3)
    pending = tuple(
        PendingTurn(
            turn.request_id,
            turn.remaining_tokens,
            turn.remaining_ms,
            None if turn.ttft_due_s is None else (turn.ttft_due_s - now_s) * 1e3,
            turn.priority,
            ready_in_ms=-age_ms,
            tpot_ms=turn.tpot_ms,
            answer_tokens=turn.answer_tokens,
            answer_ms=turn.answer_ms,
            chunk_ms=turn.chunk_ms,
        )
        for turn in load.prefills
    )
    decoding = tuple(
        DecodingTurn(turn.request_id, turn.tpot_ms, turn.priority, turn.left_tokens) for turn in load.decodes
    )
    return Backlog(
        pending,
        decoding,
        load.decode_step_ms,
        age_ms,
        interrupt_tokens=load.interrupt_tokens,
        num_layers=load.num_layers,
    )
