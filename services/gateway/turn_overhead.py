"""What turns take beside the engine, as clients of this gateway see it. Learnt from turns that have ended.

    arrival      plan      replica     admitted                    first token          token sent
      |- spent ---|- beside --|- queue ----|- computed in the engine ---|----- beside -------|

It hardly depends on the prompt: a few ms, or more where the host is busy. Of a long prompt that is nothing; of one that
a GPU computes in 20 ms it is a tenth, or more.
"""

from __future__ import annotations

from collections import deque
from statistics import median

MEMORY_TURNS = 15
"""Of so many turns the median is taken."""


class TurnOverhead:
    """One number, in ms; 0 until something is known."""

    def __init__(self) -> None:
        self._recent_ms: deque[float] = deque(maxlen=MEMORY_TURNS)

    @property
    def ms(self) -> float:
        """What the next turn is expected to take beside the engine."""
        return median(self._recent_ms) if self._recent_ms else 0.0

    def learn(self, ttft_ms: float, spent_ms: float, queue_ms: float, prefill_ms: float) -> None:
        """A turn has had its first token.

        Args:
            ttft_ms: since it came; spent_ms: of that, until it was planned.
            queue_ms, prefill_ms: what the replica says of its own part; without a prefill it was no first token of it.
        """
        if prefill_ms > 0.0:
            self._recent_ms.append(max(0.0, ttft_ms - spent_ms - queue_ms - prefill_ms))
