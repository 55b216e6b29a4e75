"""The attention function that transformers' decoders call instead of their own.

The modelling code stays theirs: it projects, rotates and hands over q, k, v; the step's `AttentionContext` arrives
through the forward pass's keyword arguments.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface

from swaa_runtime.attention.backend import AttentionContext
from swaa_runtime.errors import ModelNotSupported

ATTENTION_NAME = "swaa"


def swaa_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    swaa_context: AttentionContext | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [1, num_heads, T, head_dim] in, [1, T, num_heads, head_dim] out."""
    if swaa_context is None:
        raise ModelNotSupported("a model loaded for SWAA is run without its attention context")
    if attention_mask is not None or softcap is not None:
        raise ModelNotSupported("the model wants an attention mask or soft cap, which the recipe rule does not have")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    out = swaa_context.attend(layer, query[0], key[0], value[0], scale)
    return out.unsqueeze(0), None


def register_attention() -> None:
    """Make `attn_implementation="swaa"` known to transformers. Safe to call again."""
    AttentionInterface.register(ATTENTION_NAME, swaa_attention)
