"""What steps are expected to take: the measured profile, corrected by what they really take.

A machine is slower when others use it, and no fit is perfect. So three factors are learnt: one for what a step with
prompts takes besides, one for what grows with its prompts, one for answers. Short and long steps of prompts tell the
first two apart, which a few measurements on a busy machine cannot. Each follows the median of the last ratios of
measured to predicted time that were put down to it: one stall among them moves nothing, a machine that is twice as slow
is believed after a few steps.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

from services.cost import (
    CostProfile,
    CountedLayers,
    StepWork,
    chunk_work,
    decode_keys_of,
    is_answer,
    prefill_work_of,
    step_work,
)
from swaa_runtime.batch import ScheduledChunk
from swaa_runtime.request import Request

MEMORY_STEPS = 5
"""Of so many ratios the median is taken: up to two stalls among them are ignored."""

GAIN = 0.5
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
        self._corrections = _Correction(), _Correction(), _Correction()  # in the order of `_corrected_ms`
        self._layers = CountedLayers()

    @property
    def profile(self) -> CostProfile:
        """The profile as it is corrected now."""
        return self._measured.corrected(*(correction.factor for correction in self._corrections))

    def step_ms(self, chunks: Sequence[ScheduledChunk]) -> float:
        """See StepCost."""
        return sum(self._corrected_ms(self._work(chunks)))

    def prefill_ms(self, request: Request) -> float:
        """See StepCost."""
        start, stop = request.num_computed_tokens, len(request.token_ids)
        if start >= stop:
            return 0.0
        work = prefill_work_of(self._layers.of(request.rules), request.turns, start, stop)
        return sum(self._corrected_ms(work.in_steps(self._measured.max_step_tokens)))

    def chunk_ms(self, request: Request) -> float:
        """See StepCost."""
        start, stop = request.num_computed_tokens, request.prompt_stop
        if start >= stop:
            return 0.0
        layers = self._layers.of(request.rules)
        return self._measured.chunk_ms(layers, request.turns, start, stop) * self._corrections[1].factor

    def answer_ms(self, request: Request) -> float:
        """See StepCost. Of the token in the middle of its answer."""
        middle = len(request.token_ids) + request.num_left_tokens // 2
        num_keys = decode_keys_of(self._layers.of(request.rules), middle)
        return self._measured.answer_ms(num_keys) * self._corrections[2].factor

    def observe(self, chunks: Sequence[ScheduledChunk], took_ms: float) -> None:
        """See StepCost. The difference is put down to whichever part makes most of the step."""
        parts_ms = self._corrected_ms(self._work(chunks))
        expected_ms = sum(parts_ms)
        if expected_ms <= 0.0 or took_ms <= 0.0:
            return
        mostly = self._corrections[parts_ms.index(max(parts_ms))]
        mostly.learn(mostly.factor * took_ms / expected_ms)

    def _work(self, chunks: Sequence[ScheduledChunk]) -> StepWork:
        """The same as `step_work` of each chunk's work, with one object for all answers: they are most of them."""
        prompts, num_rows, num_keys = [], 0, 0
        for chunk in chunks:
            layers, turns = self._layers.of(chunk.request.rules), chunk.request.turns
            if is_answer(turns, chunk.start, chunk.num_tokens):
                num_rows += 1
                num_keys += decode_keys_of(layers, chunk.start)
            else:
                prompts.append(chunk_work(layers, turns, chunk.start, chunk.num_tokens))
        return step_work([*prompts, StepWork(decode_rows=num_rows, decode_keys=num_keys)])

    def _corrected_ms(self, work: StepWork) -> list[float]:
        """What is expected: besides the prompts of steps, for these, and for answers."""
        parts_ms = (*self._measured.prompt_parts_ms(work), self._measured.decode_ms(work))
        return [part * correction.factor for part, correction in zip(parts_ms, self._corrections, strict=True)]
