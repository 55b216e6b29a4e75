"""How many tokens of each request a step runs. Pure functions: no memory, no clock.

|- decoding: one each -|------------ prefill, as much as the decoding ones' next tokens allow ------------|
                       |- fair: FAIR_SHARE of it, max-min -|- the rest: most urgent first, all it can use -|

A step that computes the most urgent prompt to its end goes no further if that is worth a step more. Where next tokens
are due so soon that steps with prompts would have to be short, answers get ahead first, by steps without prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from swaa_runtime.batch import ScheduledChunk
from swaa_runtime.config import FAIR_SHARE, TPOT_SHARE
from swaa_runtime.request import Request

MAX_EVALUATIONS = 6
"""A search for the right number of tokens predicts no more steps than this."""


def share_prefill(prefills: Sequence[Request], budget_tokens: int, fair_share: float = FAIR_SHARE) -> list[int]:
    """Tokens of each of `prefills`, most urgent first, together at most `budget_tokens`.

    With a `fair_share` above 0 each gets at least one, if the budget has as many.
    """
    needs = [request.num_ready_tokens for request in prefills]
    fair_tokens = 0 if fair_share == 0 else max(int(budget_tokens * fair_share), len(needs))
    shares = max_min_fair(needs, min(budget_tokens, fair_tokens))
    left = budget_tokens - sum(shares)
    for index, need in enumerate(needs):
        more = min(need - shares[index], left)
        shares[index] += more
        left -= more
    return shares


def tokens_to_finish(num_tokens: int, num_prefills: int, fair_share: float = FAIR_SHARE) -> int:
    """A budget that gives the most urgent of so many prompts all of its `num_tokens`, and hardly more than that takes.

    The rest is the others' fair share.
    """
    to_first = 1 - fair_share + fair_share / num_prefills
    return max(math.ceil((num_tokens + 1) / to_first), num_tokens + num_prefills - 1)


def max_min_fair(needs: Sequence[int], budget: int) -> list[int]:
    """Equal shares of a budget; what one does not need is passed on, the smallest need first."""
    shares = [0] * len(needs)
    for served, index in enumerate(sorted(range(len(needs)), key=needs.__getitem__)):
        shares[index] = min(needs[index], -(-budget // (len(needs) - served)))
        budget -= shares[index]
    return shares


def step_limit_ms(decoding: Iterable[Request], now_s: float, decode_step_ms: float) -> float | None:
    """How long a step may take so that each decoding request's next token comes when it is due; None: any time.

    One whose token cannot be in time any more counts as due in half its target, so that it catches up. One whose target
    is shorter than a step that only decodes counts for nothing: no share of the budget would help it.
    """
    return min(
        (
            left_ms if left_ms >= decode_step_ms else tpot_ms / 2
            for left_ms, tpot_ms in _next_tokens(decoding, now_s, decode_step_ms)
        ),
        default=None,
    )


def strictest_target_ms(decoding: Iterable[Request], now_s: float, decode_step_ms: float) -> float:
    """The shortest time per token that is kept so far, with what is held back of it; 0 if one of them is late."""
    targets = [
        tpot_ms * TPOT_SHARE if left_ms >= decode_step_ms else 0.0
        for left_ms, tpot_ms in _next_tokens(decoding, now_s, decode_step_ms)
    ]
    return min(targets, default=0.0)


def _next_tokens(decoding: Iterable[Request], now_s: float, decode_step_ms: float) -> Iterator[tuple[float, float]]:
    """Until the next token is due, and the target, of each that has one within reach."""
    for request in decoding:
        due_s = request.next_token_due_s(TPOT_SHARE)
        if due_s is not None and request.tpot_ms is not None and request.tpot_ms >= decode_step_ms:
            yield (due_s - now_s) * 1e3, request.tpot_ms


def most_tokens_within(limit_ms: float, low: int, high: int, step_ms: Callable[[int], float]) -> int:
    """The most tokens in low..high whose step is predicted to take at most `limit_ms`; `low` if none is.

    Interpolates by a parabola, as attention makes a step's time quadratic in its tokens: exact for one that is. After
    MAX_EVALUATIONS predictions it takes the most that is known to be within the limit.
    """
    if high <= low or (above_ms := step_ms(high) - limit_ms) <= 0:
        return high
    if (below_ms := step_ms(low) - limit_ms) >= 0:
        return low
    curvature = 0.0
    for _ in range(MAX_EVALUATIONS - 2):
        if high - low <= 1:
            break
        guess = low + int(_crossing(below_ms, above_ms, high - low, curvature))
        guess = min(max(guess, low + 1), high - 1)
        excess_ms = step_ms(guess) - limit_ms
        rise, further = (excess_ms - below_ms) / (guess - low), (above_ms - excess_ms) / (high - guess)
        curvature = (further - rise) / (high - low)
        if excess_ms <= 0:
            low, below_ms = guess, excess_ms
        else:
            high, above_ms = guess, excess_ms
    return low


def _crossing(below: float, above: float, width: float, curvature: float) -> float:
    """Where in 0..width a parabola is zero that is `below` < 0 at 0 and `above` > 0 at width.

    Newton's form, y = below + x (above - below) / width + curvature x (x - width), solved without cancellation.
    """
    slope = (above - below) / width - curvature * width
    root = slope + math.sqrt(max(0.0, slope * slope - 4 * curvature * below))
    return -2 * below / root if root > 0 else width / 2


def chunks(requests: Sequence[Request], shares: Sequence[int], multiple: int = 1) -> list[ScheduledChunk]:
    """What those with a share run: no more than that, and less if the chunk ends at a multiple of positions then.

    A chunk that brings its prompt to the end is left as it is, and one that would lose more than half.
    """
    return [
        ScheduledChunk(request, _rounded(request, share, multiple))
        for request, share in zip(requests, shares, strict=True)
        if share
    ]


def _rounded(request: Request, share: int, multiple: int) -> int:
    if share >= request.num_ready_tokens:
        return share
    over = (request.num_computed_tokens + share) % multiple
    return share - over if 2 * over <= share else share
