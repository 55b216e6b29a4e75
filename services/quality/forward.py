"""Teacher forcing: how likely a model finds the answers of packed examples under a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from services.quality.packing import PackedBatch, PackedContext, PackedMasks
from swaa_runtime.recipe import LayerRule


def answer_logits(model: Any, batch: PackedBatch, context: PackedContext) -> torch.Tensor:
    """Float32 logits [n, vocab_size] of the batch's target rows, differentiable.

    Args:
        model: a transformers decoder with a language model head, built with attention "swaa".
    """
    out = model.base_model(
        input_ids=batch.token_ids.unsqueeze(0),
        position_ids=batch.positions.unsqueeze(0),
        use_cache=False,
        swaa_context=context,
    )
    logits: torch.Tensor = model.get_output_embeddings()(out.last_hidden_state[0][batch.target_rows])
    return logits.float()


def answer_nll(model: Any, batch: PackedBatch, context: PackedContext) -> torch.Tensor:
    """Negative log-likelihood (nats) of each answer token, [n], differentiable."""
    return torch.nn.functional.cross_entropy(answer_logits(model, batch, context), batch.target_ids, reduction="none")


@torch.no_grad()
def mean_nll(model: Any, packs: Sequence[PackedMasks], rules: Sequence[LayerRule]) -> list[float]:
    """Mean NLL (nats per answer token) of each example of the packs, in order, under the rules of all layers."""
    means: list[float] = []
    for masks in packs:
        batch = masks.batch
        nll = answer_nll(model, batch, PackedContext(masks, rules))
        sums = torch.zeros(len(batch.examples), device=nll.device).index_add(0, batch.target_examples, nll)
        counts = torch.tensor([example.num_answer_tokens for example in batch.examples], device=nll.device)
        means += (sums / counts).tolist()
    return means
