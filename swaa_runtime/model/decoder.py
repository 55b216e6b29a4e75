"""From a step's token ids to its hidden states: transformers' own layers, or ours where a device makes it worth it."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from swaa_runtime.attention.backend import StepContext
from swaa_runtime.errors import ModelNotSupported
from swaa_runtime.group import Group


class Decoder(Protocol):
    """The decoder layers of a model; `name` tells which code runs them."""

    name: str

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        context: StepContext,
        rows: torch.Tensor | None = None,
        num_layers: int | None = None,
    ) -> torch.Tensor:
        """Hidden states after the last norm, of int64 token ids and positions [T].

        Args:
            num_layers: if no rows are wanted, so many layers are enough, from the first.

        Returns:
            [T, hidden_size], or of int64 `rows` [n] alone; K and V of all T are stored.
        """
        ...


class TransformersDecoder:
    """The modelling code as it came, with our attention in it."""

    name = "transformers"

    def __init__(self, model: Any) -> None:
        self._decoder = model.base_model

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        context: StepContext,
        rows: torch.Tensor | None = None,
        num_layers: int | None = None,
    ) -> torch.Tensor:
        """See Decoder.forward."""
        out = self._decoder(
            input_ids=token_ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            use_cache=False,
            swaa_context=context,
        )
        hidden: torch.Tensor = out.last_hidden_state[0]
        return hidden if rows is None else hidden[rows]


def gpu_decoder(model: Any, group: Group | None = None) -> Decoder:
    """The fused decoder, or transformers' for what it does not cover (mixtures of experts).

    Args:
        group: whose part of a model it is; see `shard_model`.
    """
    from swaa_runtime.model.fused import fused_decoder

    try:
        return fused_decoder(model, group)
    except ModelNotSupported:
        return TransformersDecoder(model)
