"""The context of a step that may be interrupted between layers.

Attention is where every decoder comes by once a layer, ours and transformers' alike. All that a step needs to go on is
its own then: tensors that its forward holds, and slots of KV memory that nobody else has.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from swaa_runtime.attention.backend import StepContext
from swaa_runtime.kv_cache.storage import KVStorage
from swaa_runtime.layer_pacer import LayerPacer


class InterruptibleContext:
    """A step's context that calls back before the attention of each layer but the first."""

    def __init__(self, context: StepContext, pacer: LayerPacer, between_layers: Callable[[], None]) -> None:
        """`between_layers` may run another step, with a context of its own."""
        self._context = context
        self._pacer = pacer
        self._between_layers = between_layers

    @property
    def storage(self) -> KVStorage:
        """See StoredContext."""
        return self._context.storage

    @property
    def slots(self) -> torch.Tensor:
        """See StoredContext."""
        return self._context.slots

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See AttentionContext.attend."""
        self._pause(layer)
        return self._context.attend(layer, query, key, value, scale)

    def attend_stored(self, layer: int, query: torch.Tensor, scale: float) -> torch.Tensor:
        """See StoredContext.attend_stored."""
        self._pause(layer)
        return self._context.attend_stored(layer, query, scale)

    def _pause(self, layer: int) -> None:
        self._pacer.pace()
        if layer > 0:  # before the first, whoever runs the step had the chance
            self._between_layers()
