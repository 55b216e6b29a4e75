"""What steps are expected to take: the measured profile, corrected by what they really take.

A machine is slower when others use it, and no fit is perfect. So two factors are learnt, one for steps that are mostly
prompts, one for steps that are mostly answers. Each follows the median of the last steps' ratios of measured to
predicted time: one stall among them moves nothing, a machine that is twice as slow is believed after a few steps.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

from services.cost import CostProfile, CountedLayers, StepWork, chunk_work, prefill_work_of, step_work
from swaa_runtime.batch import ScheduledChunk
from swaa_runtime.request import Request

MEMORY_STEPS = 5
"""Of so many ratios the median is taken: up to two stalls among them are ignored."""

GAIN = 0.4
"""How far a step moves the correction towards that median: what lies some steps back is forgotten exponentially."""

MAX_FACTOR = 10.0
"""Prices are corrected by no more than this, either way."""


class _Correction:
    """One factor, in logarithms. It starts as if some steps had taken what was predicted."""

    def __init__(self) -> None:
        self._recent = deque([0.0] * MEMORY_STEPS, maxlen=MEMORY_STEPS)
        self._log = 0.0
        self.factor = 1.0

    def learn(self, ratio: float) -> None:
        """A step has taken `ratio` times what the profile alone predicts."""
        bound = math.log(MAX_FACTOR)
        self._recent.append(min(bound, max(-bound, math.log(ratio))))
        self._log += GAIN * (median(self._recent) - self._log)
        self.factor = math.exp(self._log)


class OnlineCost:
    """A `StepCost`: used on the engine's thread. `profile` may be read from any."""

    def __init__(self, profile: CostProfile) -> None:
        self._measured = profile
        self._prompts = _Correction()
        self._answers = _Correction()
        self._layers = CountedLayers()

    @property
    def profile(self) -> CostProfile:
        """The profile as it is corrected now."""
        return self._measured.corrected(self._prompts.factor, self._answers.factor)

    def step_ms(self, chunks: Sequence[ScheduledChunk]) -> float:
        """See StepCost."""
        prompts_ms, answers_ms = self._parts_ms(chunks)
        return prompts_ms * self._prompts.factor + answers_ms * self._answers.factor

    def prefill_ms(self, request: Request) -> float:
        """See StepCost."""
        start, stop = request.num_computed_tokens, len(request.token_ids)
        if start >= stop:
            return 0.0
        work = prefill_work_of(self._layers.of(request.rules), request.turns, start, stop)
        return self._measured.prefill_ms(work) * self._prompts.factor

    def observe(self, chunks: Sequence[ScheduledChunk], took_ms: float) -> None:
        """See StepCost. The difference is put down to whichever kind of work makes most of the step."""
        prompts_ms, answers_ms = self._parts_ms(chunks)
        if prompts_ms + answers_ms <= 0.0 or took_ms <= 0.0:
            return
        corrected_prompts_ms = prompts_ms * self._prompts.factor
        corrected_answers_ms = answers_ms * self._answers.factor
        excess = took_ms / (corrected_prompts_ms + corrected_answers_ms)
        mostly = self._prompts if corrected_prompts_ms >= corrected_answers_ms else self._answers
        mostly.learn(mostly.factor * excess)

    def _parts_ms(self, chunks: Sequence[ScheduledChunk]) -> tuple[float, float]:
        """What the measured profile predicts of a step: for prompts, and for answers."""
        work: StepWork = step_work(
            chunk_work(
                self._layers.of(chunk.request.rules),
                chunk.request.turns,
                chunk.start,
                chunk.num_tokens,
            )
            for chunk in chunks
        )
        return self._measured.prompt_ms(work), self._measured.decode_ms(work)
