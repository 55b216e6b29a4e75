"""Which requests may interrupt which steps: newcomers with little to compute, between the layers of a long step.

    long step    |layer 0|layer 1|                  |layer 2|layer 3| ...
    newcomers           come ▲   |a step of theirs|  their first tokens are out

A newcomer has no token yet, and all that it has to compute fits `interrupt_tokens`. A step is long if it runs as many
itself. It is interrupted at most once for each `interrupt_tokens` of its own, so that newcomers, however many there
are, compute no more than it does, and it takes about twice its time at most. Pure, but for the clock of a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from swaa_runtime.batch import ScheduledChunk
from swaa_runtime.request import Request
from swaa_runtime.step_timer import StepTimer


def newcomers(prefills: Sequence[Request], interrupt_tokens: int) -> list[Request]:
    """Of running requests without a token, most urgent first, those whose first tokens one interruption can bring.

    A prompt that is computed up to a checkpoint only, or whose state is on its way in, is none.
    """
    taken: list[Request] = []
    for request in prefills:
        if request.num_ready_tokens == request.num_remaining_tokens <= interrupt_tokens:
            taken.append(request)
            interrupt_tokens -= request.num_remaining_tokens
    return taken


def num_interruptions(scheduled: Sequence[ScheduledChunk], interrupt_tokens: int) -> int:
    """How often newcomers may interrupt a step.

    Never if it runs a next token that is due at some time: such a step is as long as that allows already.
    """
    if interrupt_tokens == 0 or any(chunk.request.next_token_due_s() is not None for chunk in scheduled):
        return 0
    return sum(chunk.num_tokens for chunk in scheduled) // interrupt_tokens


@dataclass(slots=True)
class LongStep:
    """A step in flight that newcomers may interrupt. It is its own timer (see StepTimer): it leaves out their steps.

    Attributes:
        request_ids: whom it runs; they stay as they are until it ends.
        num_left: how often it may be interrupted yet.
        began_s: on the engine's clock.
    """

    request_ids: frozenset[str]
    num_left: int
    began_s: float
    timer: StepTimer
    _interruptions: list[StepTimer] = field(default_factory=list)

    def interrupted(self, timer: StepTimer) -> None:
        """Newcomers had a step in its midst, which `timer` has measured."""
        self.num_left -= 1
        self._interruptions.append(timer)

    def stop(self) -> None:
        """See StepTimer."""
        self.timer.stop()

    def is_done(self) -> bool:
        """See StepTimer."""
        return self.timer.is_done()

    def elapsed_ms(self) -> float:
        """See StepTimer."""
        return self.timer.elapsed_ms() - sum(timer.elapsed_ms() for timer in self._interruptions)
