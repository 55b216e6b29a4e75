"""When first tokens will come from a replica with a backlog, and what a newcomer does to the others. Pure.

Plays the rules of `swaa_runtime.scheduler` forward: a fixed share of each step goes to all prompts evenly, the rest to
the one with the least slack; what cannot meet its due time any more stands behind what still can, by priority;
decoding takes its part of every step. Steps are the scheduler's own at first, coarser the further away they are, so
that a long queue is foreseen as cheaply as a short one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from services.backlog import Backlog, DecodingTurn, PendingTurn
from swaa_runtime.config import FAIR_SHARE, MIN_PREFILL_TOKENS, TPOT_SHARE
from swaa_runtime.urgency import grain

COARSE = 0.2
"""A step of the forecast lasts at most this fraction of the time it is away, or one step of the scheduler."""

SHORTEST_STEP_MS = 0.01
ROUNDING_TOKENS = ROUNDING_MS = 1e-6


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
    """Foresees newcomers to one backlog."""

    def __init__(self, backlog: Backlog, max_step_tokens: int) -> None:
        self.backlog = backlog
        self._max_step_tokens = max_step_tokens

    @cached_property
    def first_tokens_ms(self) -> tuple[float, ...]:
        """When the first token of each pending turn comes if nobody else does, from now."""
        return first_tokens_ms(self.backlog, self._max_step_tokens)

    def outcome(self, newcomer: PendingTurn, token_ms: float = 0.0) -> Outcome:
        """What becomes of a newcomer. `token_ms`: what its own decoding adds to a step."""
        backlog = self.backlog
        promised = {
            at: turn.due_in_ms
            for at, (turn, before_ms) in enumerate(zip(backlog.pending, self.first_tokens_ms, strict=True))
            if turn.priority >= newcomer.priority and turn.due_in_ms is not None and before_ms <= turn.due_in_ms
        }
        # Only they and the newcomer matter, and they only until they are due: a long queue need not be played out.
        watched = {**promised, len(backlog.pending): math.inf}
        with_it, _ = _play(backlog.with_turn(newcomer), self._max_step_tokens, math.inf, watched)
        prefills = tuple(backlog.pending[at] for at, due_in_ms in promised.items() if due_in_ms < with_it[at])
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
        left = left_tokens(self.backlog, self._max_step_tokens, in_ms)
        pending = tuple(
            replace(turn, num_tokens=tokens, work_ms=turn.work_ms * tokens / turn.num_tokens)
            for turn, tokens in zip(self.backlog.aged(in_ms).pending, left, strict=True)
            if tokens > 0.0
        )
        return Forecast(replace(self.backlog, pending=pending, age_ms=0.0), self._max_step_tokens)


def first_tokens_ms(backlog: Backlog, max_step_tokens: int) -> tuple[float, ...]:
    """When the first token of each pending turn comes, in ms from now, in the order of `backlog.pending`."""
    return _play(backlog, max_step_tokens, math.inf)[0]


def left_tokens(backlog: Backlog, max_step_tokens: int, in_ms: float) -> tuple[float, ...]:
    """Tokens that each pending turn has to compute yet after so long."""
    return _play(backlog, max_step_tokens, in_ms)[1]


def _play(
    backlog: Backlog, max_step_tokens: int, until_ms: float, watched: Mapping[int, float] | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """First tokens (inf if later), and what is left to compute, as the rules go on from the last known step.

    Args:
        until_ms: when to stop at the latest.
        watched: turns by their place, with the time from which on they do not matter any more; stops when none does.
    """
    turns, left = backlog.pending, [turn.num_tokens for turn in backlog.pending]
    prices = [turn.work_ms / turn.num_tokens for turn in turns]
    first_tokens = [math.inf] * len(turns)
    unfinished = list(range(len(turns)))
    now_ms = start_ms = -backlog.age_ms
    while unfinished and until_ms - now_ms > ROUNDING_MS:
        ready = [at for at in unfinished if turns[at].ready_in_ms <= now_ms]
        next_ready_ms = min(
            (turns[at].ready_in_ms for at in unfinished if turns[at].ready_in_ms > now_ms), default=math.inf
        )
        if not ready:
            now_ms = next_ready_ms
            continue
        order = sorted(ready, key=lambda at: _rank(turns[at], at, left[at] * prices[at], now_ms))
        step_tokens, step_ms = _step(backlog, order, left, prices, max_step_tokens)
        # As many steps as go alike: until one turn is done or another comes, but not too coarse, and at least one.
        num_steps = min(_until_next_is_done(order, left) / step_tokens, (next_ready_ms - now_ms) / step_ms)
        num_steps = max(1.0, min(num_steps, COARSE * (now_ms - start_ms) / step_ms) // 1.0)
        num_steps = min(num_steps, (until_ms - now_ms) / step_ms)
        spent = share(order, left, num_steps * step_tokens)
        now_ms += sum(spent[at] * prices[at] for at in order) + num_steps * backlog.decode_step_ms
        for at, spent_tokens in spent.items():
            left[at] -= spent_tokens
            if left[at] <= ROUNDING_TOKENS:
                left[at], first_tokens[at] = 0.0, max(now_ms, 0.0)
        unfinished = [at for at in unfinished if left[at] > 0.0]
        if watched is not None and not any(left[at] > 0.0 and now_ms <= end_ms for at, end_ms in watched.items()):
            break
    return tuple(first_tokens), tuple(left)


def _step(
    backlog: Backlog, order: Sequence[int], left: Sequence[float], prices: Sequence[float], max_step_tokens: int
) -> tuple[float, float]:
    """Tokens to prefill in one step, and its time: as long as the tightest time per token allows, but never none."""
    spent = share(order, left, max_step_tokens)
    prefill_ms = sum(spent[at] * prices[at] for at in order)
    decode_ms = backlog.decode_step_ms
    targets = [turn.tpot_ms for turn in backlog.decoding if turn.tpot_ms is not None and turn.tpot_ms >= decode_ms]
    room_ms = min(targets, default=math.inf) * TPOT_SHARE - decode_ms
    part = min(1.0, max(MIN_PREFILL_TOKENS / max_step_tokens, room_ms / prefill_ms)) if prefill_ms > 0.0 else 1.0
    return part * max_step_tokens, max(part * prefill_ms + backlog.decode_step_ms, SHORTEST_STEP_MS)


def share(order: Sequence[int], left: Sequence[float], budget: float) -> dict[int, float]:
    """Divide tokens: FAIR_SHARE of them evenly among all (passing on what some do not need), the rest in order."""
    fair, spent = FAIR_SHARE * budget, dict.fromkeys(order, 0.0)
    for done, at in enumerate(sorted(order, key=lambda at: left[at])):
        spent[at] = min(left[at], fair / (len(order) - done))
        fair -= spent[at]
    rest = budget - sum(spent.values())
    for at in order:
        more = min(left[at] - spent[at], rest)
        spent[at] += more
        rest -= more
    return spent


def _until_next_is_done(order: Sequence[int], left: Sequence[float]) -> float:
    """Tokens until the first of these is done, if they went on as in this step."""
    even = FAIR_SHARE / len(order)
    first, *others = order
    return min(left[first] / (1.0 - FAIR_SHARE + even), *(left[at] / even for at in others), math.inf)


def _rank(turn: PendingTurn, at: int, left_ms: float, now_ms: float) -> tuple[bool, float, int, int]:
    """As `swaa_runtime.urgency`."""
    slack_ms = math.inf if turn.due_in_ms is None else turn.due_in_ms - now_ms - left_ms
    return slack_ms < 0.0, grain(slack_ms), -turn.priority, at
