"""A decoding step that the device was asked for before the host knew its tokens, so that it need not wait for the host.

    host     | schedule n | read tokens n-1 | schedule n+1 | read tokens n |
    device   | step n-1 |      step n       |    step n+1      |  step n+2

It is a guess: that every request goes on, and none joins them. Where it is wrong, the step is run as it is then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from swaa_runtime.batch import Batch
from swaa_runtime.step_timer import StepTimer


@dataclass(frozen=True, slots=True)
class StepAhead:
    """The step after a batch.

    Attributes:
        before: that batch; token_ids: what was drawn after it, by `before.sampled`.
        logits: float32 [n, vocab_size], what it gives.
        timer: of this step.
    """

    before: Batch
    token_ids: Sequence[int | None]
    logits: torch.Tensor
    timer: StepTimer

    def is_of(self, batch: Batch) -> bool:
        """Whether that batch is this step."""
        before = self.before
        if len(before.chunks) != len(batch.chunks) or list(self.token_ids) != batch.token_ids.tolist():
            return False
        return all(
            # Tables in other memory are of a state that left and came back.
            now.turns is then.turns and now.block_tables is then.block_tables and now.start == then.stop
            for then, now in zip(before.chunks, batch.chunks, strict=True)
        )
