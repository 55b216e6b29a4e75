"""What a step with prompts is worth to whom: rules that scheduler and forecast share. Pure figures, in ms.

A step that computes any prompt takes `besides_ms` beside its prompts' tokens, for answers as well; one with answers
only takes `decode_step_ms`.
"""

from __future__ import annotations

BESIDES_SHARE = 1 / 16
"""Of a step with prompts, the part that it may take besides more than one with answers only, where answers can get
ahead for it. Half of that would gain little more throughput, and whoever comes meanwhile would wait twice as long."""


def ends_with_first(saved_ms: float, besides_ms: float, num_prefills: int) -> bool:
    """Whether a step ends with the most urgent prompt instead of going on with the others.

    Its first token comes `saved_ms` earlier by that; all others wait for what one step more takes besides its tokens.
    So the mean time to first token falls: of few prompts each has its end for itself, many share it.
    """
    return saved_ms > besides_ms * (num_prefills - 1)


def ahead_ms(besides_ms: float, decode_step_ms: float, target_ms: float) -> float:
    """How long the next step with prompts should be allowed to take, if it has to be short for answers' sake.

    Answers get ahead of their targets by steps of their own, each of which takes `decode_step_ms` and allows
    `target_ms`, the strictest target, more. One long step with prompts then replaces many short ones, each of which
    would take `besides_ms`. 0: such steps are no better, or take so long that prompts would wait for more than that.
    """
    more_ms = besides_ms - decode_step_ms
    return more_ms / BESIDES_SHARE if more_ms > 0.0 and 2 * decode_step_ms <= target_ms else 0.0
