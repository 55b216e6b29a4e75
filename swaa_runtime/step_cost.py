"""What steps are expected to take: how the scheduler sees time. Who measures it is not the runtime's business."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from swaa_runtime.batch import ScheduledChunk
from swaa_runtime.request import Request


class StepCost(Protocol):
    """Predicted times, in ms. Called on the engine's thread, several times a step: must be quick."""

    def step_ms(self, chunks: Sequence[ScheduledChunk]) -> float:
        """Time of one step that runs these chunks, each from its `start` on."""
        ...

    def prefill_ms(self, request: Request) -> float:
        """Time until the request's first new token, if from now on it had the engine for itself."""
        ...

    def chunk_ms(self, request: Request) -> float:
        """Of a step that runs some of the request's prompt, what it takes more however few tokens that are."""
        ...

    def answer_ms(self, request: Request) -> float:
        """What one of the tokens that the request may generate will add to a step, on average."""
        ...

    def observe(self, chunks: Sequence[ScheduledChunk], took_ms: float) -> None:
        """Such a step has taken so long."""
        ...


class UnknownCost:
    """Nothing has been measured: everything takes no time, so that only due times count."""

    def step_ms(self, chunks: Sequence[ScheduledChunk]) -> float:
        """See StepCost."""
        return 0.0

    def prefill_ms(self, request: Request) -> float:
        """See StepCost."""
        return 0.0

    def chunk_ms(self, request: Request) -> float:
        """See StepCost."""
        return 0.0

    def answer_ms(self, request: Request) -> float:
        """See StepCost."""
        return 0.0

    def observe(self, chunks: Sequence[ScheduledChunk], took_ms: float) -> None:
        """See StepCost."""
