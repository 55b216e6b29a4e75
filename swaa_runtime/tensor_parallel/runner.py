"""The runner of a model that several ranks compute: tells the others what runs, and runs rank 0's part."""

from __future__ import annotations

from collections.abc import Callable

import torch

from swaa_runtime.batch import Batch
from swaa_runtime.config import EngineConfig
from swaa_runtime.runner import ModelRunner
from swaa_runtime.tensor_parallel.batches import BatchTeller
from swaa_runtime.tensor_parallel.memory import SharedMemory
from swaa_runtime.tensor_parallel.orders import Build, Run, WarmUp
from swaa_runtime.tensor_parallel.ranks import LOAD_S, Ranks


class SharedRunner(ModelRunner):
    """A ModelRunner whose `run` and whose `storage` are all ranks'. Engine, scheduler and KV manager know no ranks.

    Ranks obey one whole batch after the other, so no step is interrupted.
    """

    is_interruptible = False

    def __init__(self, ranks: Ranks, config: EngineConfig, theirs: type[ModelRunner] = ModelRunner) -> None:
        """Build runners on all ranks, in place of those they had; on the others it is one of `theirs`."""
        ranks.order(Build(config, theirs))
        with ranks.together(LOAD_S):
            super().__init__(ranks.loaded, config)
        self._ranks = ranks
        self._teller = BatchTeller(config.block_size_tokens, config.max_running)
        self.storage = SharedMemory(ranks, self.part)

    def run(self, batch: Batch, between_layers: Callable[[], None] | None = None) -> torch.Tensor:
        """See ModelRunner.run; `between_layers` is not called. Raises EngineFailed if a rank is gone."""
        self._ranks.order(Run(self._teller.tell(batch)))
        with self._ranks.together():
            return super().run(batch)

    def runs_ahead_of(self, batch: Batch) -> bool:
        """Never: the other ranks are told tokens by the host."""
        return False

    def warm_up(self) -> None:
        """See ModelRunner.warm_up."""
        self._ranks.order(WarmUp())
        with self._ranks.together(LOAD_S):
            super().warm_up()

    def check(self) -> None:
        """See ModelRunner.check."""
        self._ranks.check()
