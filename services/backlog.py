"""What a replica has to do yet, and when a newcomer's first token would come behind it. Pure: figures in, figures out.

The forecast plays the rules of `swaa_runtime.scheduler` forward: a fixed share of each step goes to all prompts
evenly, the rest to the one with the least slack; what cannot meet its due time any more stands behind what still can,
by priority; decoding takes its part of every step. Steps are the scheduler's own at first, coarser the further away
they are, so that a long queue is foreseen as cheaply as a short one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

FAIR_SHARE = 0.25
"""Of each step's prefill, what all prompts divide evenly."""

COARSE = 0.1
"""A step of the forecast lasts at most this fraction of the time it is away, or one step of the scheduler."""

LEAST_PREFILL = 0.125
"""Of a full step's prefill, what is done in every step however close the next token of an answer is due."""

ROUNDING_MS = 1e-6


@dataclass(frozen=True, slots=True)
class PendingTurn:
    """A turn without a token yet.

    Attributes:
        work_ms: predicted time the engine needs until its first token, had the turn the engine for itself.
        due_in_ms: when that token is due, negative if that is past; None: at no particular time.
        ready_in_ms: when it can run: later than now if its state is on its way in, negative if it could already.
    """

    request_id: str
    work_ms: float
    due_in_ms: float | None
    priority: int
    ready_in_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class DecodingTurn:
    """A turn that generates tokens, at `tpot_ms` each if it aims at that."""

    request_id: str
    tpot_ms: float | None
    priority: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """All turns of one replica.

    Attributes:
        pending: in the order they came.
        decode_step_ms: predicted time of a step that runs one token for each of `decoding` and nothing else.
        age_ms: how long ago a step began, the last that is known of.
    """

    pending: tuple[PendingTurn, ...] = ()
    decoding: tuple[DecodingTurn, ...] = ()
    decode_step_ms: float = 0.0
    age_ms: float = 0.0

    @property
    def request_ids(self) -> frozenset[str]:
        """Of all its turns."""
        return frozenset(turn.request_id for turn in (*self.pending, *self.decoding))

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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What would become of a newcomer, and of the others if it came.

    Attributes:
        first_token_ms: from now.
        wait_ms: of that, what it would not take alone.
        harmed: turns of its priority or above that would meet what they aim at without it, and not with it.
    """

    first_token_ms: float
    wait_ms: float
    harmed: tuple[PendingTurn | DecodingTurn, ...]


class Forecast:
    """Foresees newcomers to one backlog.

    Args:
        full_step_ms: predicted prefill in a step that is full of it.
    """

    def __init__(self, backlog: Backlog, full_step_ms: float) -> None:
        self.backlog = backlog
        self._full_step_ms = max(full_step_ms, 1.0)

    @cached_property
    def first_tokens_ms(self) -> tuple[float, ...]:
        """When the first token of each pending turn comes if nobody else does, from now."""
        return first_tokens_ms(self.backlog, self._full_step_ms)

    def outcome(self, newcomer: PendingTurn, token_ms: float = 0.0) -> Outcome:
        """What becomes of a newcomer. `token_ms`: what its own decoding adds to a step."""
        backlog = self.backlog
        with_it = first_tokens_ms(backlog.with_turn(newcomer), self._full_step_ms)
        prefills = tuple(
            turn
            for turn, before_ms, after_ms in zip(backlog.pending, self.first_tokens_ms, with_it[:-1], strict=True)
            if turn.priority >= newcomer.priority
            and turn.due_in_ms is not None
            and before_ms <= turn.due_in_ms < after_ms
        )
        decode_ms = backlog.decode_step_ms
        decodes = tuple(
            turn
            for turn in backlog.decoding
            if turn.priority >= newcomer.priority
            and turn.tpot_ms is not None
            and decode_ms <= turn.tpot_ms < decode_ms + token_ms
        )
        alone_ms = max(0.0, newcomer.ready_in_ms) + newcomer.work_ms
        return Outcome(with_it[-1], max(0.0, with_it[-1] - alone_ms), (*prefills, *decodes))

    def later(self, in_ms: float) -> Forecast:
        """The forecast for newcomers that come so much later, if nobody else does until then."""
        left = left_ms(self.backlog, self._full_step_ms, in_ms)
        pending = tuple(
            replace(turn, work_ms=work_ms)
            for turn, work_ms in zip(self.backlog.aged(in_ms).pending, left, strict=True)
            if work_ms > 0.0
        )
        return Forecast(replace(self.backlog, pending=pending, age_ms=0.0), self._full_step_ms)


@dataclass(frozen=True, slots=True)
class Pace:
    """How much prefill a step does, and how much longer it takes than that because of decoding."""

    prefill_ms: float
    stretch: float


def pace(backlog: Backlog, full_step_ms: float) -> Pace:
    """A step is as full of prefill as the tightest time per token allows, but never without any."""
    decode_ms = backlog.decode_step_ms
    room_ms = min((turn.tpot_ms for turn in backlog.decoding if turn.tpot_ms is not None), default=math.inf) - decode_ms
    prefill_ms = min(full_step_ms, max(room_ms, LEAST_PREFILL * full_step_ms))
    return Pace(prefill_ms, 1.0 + decode_ms / prefill_ms)


def first_tokens_ms(backlog: Backlog, full_step_ms: float) -> tuple[float, ...]:
    """When the first token of each pending turn comes, in ms from now, in the order of `backlog.pending`."""
    return _play(backlog, full_step_ms, math.inf)[0]


def left_ms(backlog: Backlog, full_step_ms: float, in_ms: float) -> tuple[float, ...]:
    """What each pending turn has to do yet after so long, in ms of its own."""
    return _play(backlog, full_step_ms, in_ms)[1]


def _play(backlog: Backlog, full_step_ms: float, until_ms: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """First tokens, and what is left to do, when the rules have been followed from the last known step until then."""
    turns, step = backlog.pending, pace(backlog, full_step_ms)
    left = [max(turn.work_ms, ROUNDING_MS) for turn in turns]
    first_tokens = [math.inf] * len(turns)
    unfinished = list(range(len(turns)))
    now_ms = start_ms = -backlog.age_ms
    while unfinished and now_ms < until_ms:
        ready = [at for at in unfinished if turns[at].ready_in_ms <= now_ms]
        next_ready_ms = min(
            (turns[at].ready_in_ms for at in unfinished if turns[at].ready_in_ms > now_ms), default=math.inf
        )
        if not ready:
            now_ms = next_ready_ms
            continue
        order = sorted(ready, key=lambda at: _rank(turns[at], at, left[at], now_ms))
        longest_ms = max(step.prefill_ms, COARSE * (now_ms - start_ms))
        longest_ms = min(longest_ms, max(step.prefill_ms, (next_ready_ms - now_ms) / step.stretch))
        quantum_ms = min(max(step.prefill_ms, _until_next_is_done(order, left)), longest_ms)
        quantum_ms = min(quantum_ms, (until_ms - now_ms) / step.stretch)
        spent = share(order, left, quantum_ms)
        now_ms += sum(spent.values()) * step.stretch
        for at, spent_ms in spent.items():
            left[at] -= spent_ms
            if left[at] <= ROUNDING_MS:
                left[at], first_tokens[at] = 0.0, max(now_ms, 0.0)
        unfinished = [at for at in unfinished if left[at] > 0.0]
    return tuple(first_tokens), tuple(left)


def share(order: Sequence[int], left_ms: Sequence[float], budget_ms: float) -> dict[int, float]:
    """Divide prefill: FAIR_SHARE of it evenly among all (passing on what some do not need), the rest in order."""
    fair_ms, spent = FAIR_SHARE * budget_ms, dict.fromkeys(order, 0.0)
    for done, at in enumerate(sorted(order, key=lambda at: left_ms[at])):
        spent[at] = min(left_ms[at], fair_ms / (len(order) - done))
        fair_ms -= spent[at]
    rest_ms = budget_ms - sum(spent.values())
    for at in order:
        more_ms = min(left_ms[at] - spent[at], rest_ms)
        spent[at] += more_ms
        rest_ms -= more_ms
    return spent


def _until_next_is_done(order: Sequence[int], left_ms: Sequence[float]) -> float:
    """Prefill until the first of these is done, if they went on as in this step."""
    even = FAIR_SHARE / len(order)
    first, *others = order
    return min(left_ms[first] / (1.0 - FAIR_SHARE + even), *(left_ms[at] / even for at in others), math.inf)


def _rank(turn: PendingTurn, at: int, left_ms: float, now_ms: float) -> tuple[bool, float, int]:
    slack_ms = math.inf if turn.due_in_ms is None else turn.due_in_ms - now_ms - left_ms
    late = slack_ms < 0.0
    return late, -turn.priority if late else slack_ms, at
