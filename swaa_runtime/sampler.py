"""Picks the next token of each request from its logits."""

from __future__ import annotations

import torch

from swaa_runtime.request import SamplingParams, TokenLogprob

GREEDY_BELOW = 1e-5
"""Colder than this, the likeliest token takes all there is, and dividing float32 logits could overflow."""


def filter_logits(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Scale one row of logits [vocab_size] and set what top-k, top-p and min-p exclude to -inf.

    Each filter looks at the distribution that the one before it left. The likeliest token always stays.
    """
    logits = logits / params.temperature
    if 0 < params.top_k < logits.shape[-1]:
        threshold = logits.topk(params.top_k).values[-1]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if params.top_p < 1.0:
        ordered, index = logits.sort(descending=True, stable=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        logits = logits.index_fill(-1, index[before >= params.top_p], -torch.inf)
    if params.min_p > 0.0:
        floor = logits.max() + torch.log(torch.tensor(params.min_p, device=logits.device))
        logits = logits.masked_fill(logits < floor, -torch.inf)
    return logits


def sample(logits: torch.Tensor, params: SamplingParams, generator: torch.Generator | None) -> int:
    """One token id from one row of float32 logits [vocab_size]; greedy when the temperature is (next to) 0."""
    if params.temperature < GREEDY_BELOW:
        return int(logits.argmax())
    probs = filter_logits(logits, params).softmax(-1)
    return int(torch.multinomial(probs, 1, generator=generator))


def token_logprob(logits: torch.Tensor, token_id: int, num_top: int) -> TokenLogprob:
    """Log-probabilities under the model itself, before temperature and filters."""
    logprobs = logits.log_softmax(-1)
    top = logprobs.topk(num_top) if num_top else None
    return TokenLogprob(
        logprob=float(logprobs[token_id]),
        top_token_ids=tuple(top.indices.tolist()) if top else (),
        top_logprobs=tuple(top.values.tolist()) if top else (),
    )
