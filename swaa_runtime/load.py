"""What an engine has to do yet, as plain data that any thread may read: planners predict waits from it. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PrefillLoad:
    """A request that has no token yet.

    Attributes:
        remaining_tokens: to compute until its first token; what is restored is not.
        remaining_ms: predicted time until its first token if it had the engine for itself.
        chunk_ms: of that, what each step takes more than it would for others, however few of these tokens it computes.
        ttft_due_s: when that is due, on the engine's clock (time.monotonic); None: at no particular time.
        waiting: whether it waits for admission still.
        tpot_ms: time per token that it aims at once it has its first; answer_tokens: how many it may generate.
        answer_ms: predicted time that each of those adds to a step.
    """

    request_id: str
    remaining_tokens: int
    remaining_ms: float
    ttft_due_s: float | None
    priority: int
    waiting: bool
    tpot_ms: float | None = None
    answer_tokens: int = 1
    answer_ms: float = 0.0
    chunk_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class DecodeLoad:
    """A request that generates tokens, at `tpot_ms` each if it aims at that, and `left_tokens` more at most."""

    request_id: str
    tpot_ms: float | None
    priority: int
    left_tokens: float = math.inf


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine had to do at one moment.

    Attributes:
        taken_s: that moment, on the engine's clock.
        prefills: in the order they came.
        decode_step_ms: predicted time of a step that does nothing but one token for each of `decodes`.
        interrupt_tokens: newcomers with at most so many tokens may interrupt a step that runs as many; 0: none.
        num_layers: of the model, between which they can; 0 if nothing runs.
    """

    taken_s: float
    prefills: tuple[PrefillLoad, ...] = ()
    decodes: tuple[DecodeLoad, ...] = ()
    decode_step_ms: float = 0.0
    interrupt_tokens: int = 0
    num_layers: int = 0

    @property
    def prefill_ms(self) -> float:
        """Predicted time of all prefill there is."""
        return sum(prefill.remaining_ms for prefill in self.prefills)
