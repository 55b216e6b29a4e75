"""When first tokens will come from a replica with a backlog, and what a newcomer does to the others. Pure.

Plays the rules of `swaa_runtime.scheduler` forward: a fixed share of each step goes to all prompts evenly, the rest to
the one with the least slack; what cannot meet its due time any more stands behind what still can, by priority;
decoding takes its part of every step, that of turns that have their first token by then as well; a step may end with
the prompt that it completes; short newcomers interrupt long steps. Steps are the scheduler's own at first, coarser the
further away they are, so that a long queue is foreseen as cheaply as a short one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from services.backlog import Backlog, DecodingTurn, PendingTurn
from swaa_runtime.config import FAIR_SHARE, MIN_PREFILL_TOKENS, TPOT_SHARE
from swaa_runtime.step_rules import ahead_ms, ends_with_first
from swaa_runtime.urgency import grain

COARSE = 0.2
"""A step of the forecast lasts at most this fraction of the time it is away, or one step of the scheduler."""

LAYERS_AHEAD = 1.5
"""Of a step that is interrupted, what is still computed before: half a layer on average, and the one asked for next."""

SHORTEST_STEP_MS = 0.01
ROUNDING_TOKENS = ROUNDING_MS = 1e-6


@dataclass(frozen=True, slots=True)
class Steps:
    """What steps are like.

    Attributes:
        prompt_ms: what one with prompt tokens takes besides, and `decode_ms` one that has answers' tokens only.
        mixed_row_ms: what an answer's token takes more in one with prompts.
    """

    max_tokens: int
    prompt_ms: float = 0.0
    decode_ms: float = 0.0
    mixed_row_ms: float = 0.0

    def besides_ms(self, turn: PendingTurn, num_tokens: float) -> float:
        """Of steps that run so many tokens of a turn alone, all that does not grow with these."""
        return math.ceil(num_tokens / self.max_tokens - ROUNDING_TOKENS) * (self.prompt_ms + turn.chunk_ms)

    def token_ms(self, turn: PendingTurn) -> float:
        """What a token of a turn takes, without what steps and chunks take besides."""
        return max(0.0, turn.work_ms - self.besides_ms(turn, turn.num_tokens)) / turn.num_tokens


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

    def __init__(self, backlog: Backlog, steps: Steps) -> None:
        self.backlog = backlog
        self._steps = steps

    @cached_property
    def first_tokens_ms(self) -> tuple[float, ...]:
        """When the first token of each pending turn comes if nobody else does, from now."""
        return first_tokens_ms(self.backlog, self._steps)

    def outcome(self, newcomer: PendingTurn) -> Outcome:
        """What becomes of a newcomer."""
        backlog = self.backlog
        promised = {
            at: turn.due_in_ms
            for at, (turn, before_ms) in enumerate(zip(backlog.pending, self.first_tokens_ms, strict=True))
            if turn.priority >= newcomer.priority and turn.due_in_ms is not None and before_ms <= turn.due_in_ms
        }
        # Only they and the newcomer matter, and they only until they are due: a long queue need not be played out.
        watched = {**promised, len(backlog.pending): math.inf}
        with_it, _ = _play(backlog.with_turn(newcomer), self._steps, math.inf, watched)
        prefills = tuple(backlog.pending[at] for at, due_in_ms in promised.items() if due_in_ms < with_it[at])
        decode_ms = backlog.decode_step_ms
        decodes = tuple(
            turn
            for turn in backlog.decoding
            if turn.priority >= newcomer.priority
            and turn.tpot_ms is not None
            and decode_ms <= turn.tpot_ms < decode_ms + newcomer.answer_ms
        )
        alone_ms = max(0.0, newcomer.ready_in_ms) + newcomer.work_ms
        return Outcome(with_it[-1], max(0.0, with_it[-1] - alone_ms), (*prefills, *decodes))

    def later(self, in_ms: float) -> Forecast:
        """The forecast for newcomers that come so much later, if nobody else does until then."""
        left = left_tokens(self.backlog, self._steps, in_ms)
        pending = tuple(
            replace(turn, num_tokens=tokens, work_ms=turn.work_ms * tokens / turn.num_tokens)
            for turn, tokens in zip(self.backlog.aged(in_ms).pending, left, strict=True)
            if tokens > 0.0
        )
        return Forecast(replace(self.backlog, pending=pending, age_ms=0.0), self._steps)


def first_tokens_ms(backlog: Backlog, steps: Steps) -> tuple[float, ...]:
    """When the first token of each pending turn comes, in ms from now, in the order of `backlog.pending`."""
    return _play(backlog, steps, math.inf)[0]


def left_tokens(backlog: Backlog, steps: Steps, in_ms: float) -> tuple[float, ...]:
    """Tokens that each pending turn has to compute yet after so long."""
    return _play(backlog, steps, in_ms)[1]


def _play(
    backlog: Backlog, steps: Steps, until_ms: float, watched: Mapping[int, float] | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """First tokens (inf if later), and what is left to compute, as the rules go on from the last known step.

    Args:
        until_ms: when to stop at the latest.
        watched: turns by their place, with the time from which on they do not matter any more; stops when none does.
    """
    turns, left = backlog.pending, [turn.num_tokens for turn in backlog.pending]
    prices = [steps.token_ms(turn) for turn in turns]
    first_tokens = [math.inf] * len(turns)
    unfinished = list(range(len(turns)))
    answers = Answers(backlog, steps)
    now_ms = start_ms = -backlog.age_ms

    def end(at: int, end_ms: float) -> None:
        left[at], first_tokens[at] = 0.0, max(end_ms, 0.0)
        unfinished.remove(at)
        answers.begin(turns[at])

    while unfinished and until_ms - now_ms > ROUNDING_MS:
        ready = [at for at in unfinished if turns[at].ready_in_ms <= now_ms]
        next_ready_ms = min(
            (turns[at].ready_in_ms for at in unfinished if turns[at].ready_in_ms > now_ms), default=math.inf
        )
        if not ready:
            now_ms = next_ready_ms
            continue
        left_ms = {at: left[at] * prices[at] + steps.besides_ms(turns[at], left[at]) for at in unfinished}
        long, short, layers_ms = _interruption(backlog, answers, steps, unfinished, left, left_ms, now_ms)
        interrupted_ms, at_ms, begun_ms = {}, now_ms, now_ms
        for at in short:
            ready_ms = turns[at].ready_in_ms
            at_ms = max(at_ms, ready_ms + layers_ms if ready_ms > begun_ms else begun_ms) + left_ms[at]
            interrupted_ms[at] = at_ms
            now_ms += left_ms[at]
        ready = long if short else ready
        order = sorted(ready, key=lambda at: _rank(turns[at], at, left_ms[at], now_ms))
        step = _step(answers, order, left, prices, [turns[at].chunk_ms for at in order], steps)
        # As many steps as go alike: until one turn is done or another comes, but not too coarse, and at least one.
        num_steps = min(_until_next_is_done(order, left) / step.tokens, (next_ready_ms - now_ms) / step.ms)
        num_steps = min(num_steps, answers.fewest_tokens / step.answer_tokens)
        num_steps = max(1.0, min(num_steps, COARSE * (now_ms - start_ms) / step.ms) // 1.0)
        num_steps = max(0.0, min(num_steps, (until_ms - now_ms) / step.ms))
        spent = share(order, left, num_steps * step.tokens)
        now_ms += sum(spent[at] * prices[at] for at in order) + num_steps * step.besides_ms
        answers.go_on(num_steps * step.answer_tokens)
        for at, end_ms in interrupted_ms.items():
            end(at, end_ms)
        for at, spent_tokens in spent.items():
            left[at] -= spent_tokens
            if left[at] <= ROUNDING_TOKENS:
                end(at, now_ms)
        if watched is not None and not any(left[at] > 0.0 and now_ms <= end_ms for at, end_ms in watched.items()):
            break
    return tuple(first_tokens), tuple(left)


class Answers:
    """Turns that generate tokens while the forecast goes on: those that do now, and each pending one after its first.

    What each adds to a step goes as it ends; of those that do now, all add as much.
    """

    def __init__(self, backlog: Backlog, steps: Steps) -> None:
        self._steps = steps
        known_ms = max(0.0, backlog.decode_step_ms - steps.decode_ms) / max(1, len(backlog.decoding))
        self._turns = [(turn.left_tokens, turn.tpot_ms, known_ms) for turn in backlog.decoding]

    @property
    def decode_ms(self) -> float:
        """A step with nothing else."""
        return self._steps.decode_ms + sum(ms for _, _, ms in self._turns) if self._turns else 0.0

    @property
    def besides_ms(self) -> float:
        """What a step takes beside its prompts' tokens."""
        rows_ms = max(0.0, self.decode_ms - self._steps.decode_ms) + len(self._turns) * self._steps.mixed_row_ms
        return self._steps.prompt_ms + rows_ms

    @property
    def targets_ms(self) -> list[float]:
        """Times per token that they aim at."""
        return [tpot_ms for _, tpot_ms, _ in self._turns if tpot_ms is not None]

    @property
    def fewest_tokens(self) -> float:
        """Until the first of them ends."""
        return min((left for left, _, _ in self._turns), default=math.inf)

    def begin(self, turn: PendingTurn) -> None:
        """A turn has its first token."""
        if turn.answer_tokens > 1:
            self._turns.append((turn.answer_tokens - 1, turn.tpot_ms, turn.answer_ms))

    def go_on(self, num_steps: float) -> None:
        """So many steps run, with a token of each."""
        self._turns = [
            (left - num_steps, tpot_ms, ms) for left, tpot_ms, ms in self._turns if left - num_steps > ROUNDING_TOKENS
        ]


def _interruption(
    backlog: Backlog,
    answers: Answers,
    steps: Steps,
    unfinished: Sequence[int],
    left: Sequence[float],
    left_ms: Mapping[int, float],
    now_ms: float,
) -> tuple[list[int], list[int], float]:
    """As `swaa_runtime.interruption`: turns of a long step, and those that have their first tokens in its midst.

    And how long these wait for layers that have been asked for when they come.
    """
    bound, turns = backlog.interrupt_tokens, backlog.pending
    if bound == 0 or answers.targets_ms:
        return [], [], 0.0
    long = [at for at in unfinished if left[at] > bound and turns[at].ready_in_ms <= now_ms]
    spent = share(long, left, steps.max_tokens)
    room = sum(spent.values()) // bound * bound
    ends_ms = now_ms + sum(left_ms[at] * tokens / left[at] for at, tokens in spent.items())
    short = []
    for at in sorted(unfinished, key=lambda at: turns[at].ready_in_ms):
        if left[at] <= min(bound, room) and turns[at].ready_in_ms < ends_ms:
            room -= left[at]
            short.append(at)
    layers_ms = 0.0 if backlog.num_layers == 0 else LAYERS_AHEAD * (ends_ms - now_ms) / backlog.num_layers
    return long, short, layers_ms


@dataclass(frozen=True, slots=True)
class _Step:
    """A step with prompts, and the steps without by which answers get ahead for it.

    Attributes:
        tokens: of prompts, at most.
        ms: what it takes with as many; `besides_ms`: with none.
        answer_tokens: of each answer.
    """

    tokens: float
    ms: float
    besides_ms: float
    answer_tokens: float = 1.0


def _step(
    answers: Answers,
    order: Sequence[int],
    left: Sequence[float],
    prices: Sequence[float],
    chunks_ms: Sequence[float],
    steps: Steps,
) -> _Step:
    """As the scheduler makes them: worth a step, and as long as the strictest time per token allows, but never none.

    Each of `order` has a chunk in it, which takes chunks_ms[i] besides.
    """

    def prefill_ms(tokens: float) -> float:
        spent = share(order, left, tokens)
        return sum(spent[at] * prices[at] for at in order)

    tokens = min(float(steps.max_tokens), sum(left[at] for at in order))
    besides_ms = answers.besides_ms + sum(chunks_ms)
    alone_besides_ms = answers.besides_ms + chunks_ms[0]
    whole_ms = prefill_ms(tokens)
    fewer = _until_first_is_done(order, left)
    if len(order) > 1 and fewer < tokens:
        fewer_ms = prefill_ms(fewer)
        if ends_with_first(whole_ms - fewer_ms, alone_besides_ms, len(order)):
            tokens, whole_ms = fewer, fewer_ms
    decode_ms = max(answers.decode_ms, steps.decode_ms)
    target_ms = TPOT_SHARE * min((each for each in answers.targets_ms if each >= answers.decode_ms), default=math.inf)
    longest_ms = max(target_ms, min(whole_ms + besides_ms, ahead_ms(alone_besides_ms, decode_ms, target_ms)))
    num_ahead = (longest_ms - target_ms) / (target_ms - decode_ms) if longest_ms > target_ms else 0.0
    ahead_besides_ms = besides_ms + num_ahead * decode_ms
    part = 1.0
    if whole_ms > 0.0:
        part = min(1.0, max(MIN_PREFILL_TOKENS / tokens, (longest_ms - besides_ms) / whole_ms))
    ms = max(part * whole_ms + ahead_besides_ms, SHORTEST_STEP_MS)
    return _Step(part * tokens, ms, ahead_besides_ms, 1.0 + num_ahead)


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
    return min(_until_first_is_done(order, left), *(left[at] / even for at in order[1:]), math.inf)


def _until_first_is_done(order: Sequence[int], left: Sequence[float]) -> float:
    """Tokens until the most urgent of these is done."""
    return left[order[0]] / (1.0 - FAIR_SHARE + FAIR_SHARE / len(order))


def _rank(turn: PendingTurn, at: int, left_ms: float, now_ms: float) -> tuple[bool, float, int, int]:
    """As `swaa_runtime.urgency`."""
    slack_ms = math.inf if turn.due_in_ms is None else turn.due_in_ms - now_ms - left_ms
    return slack_ms < 0.0, grain(slack_ms), -turn.priority, at
