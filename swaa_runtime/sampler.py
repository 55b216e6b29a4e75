"""Picks the next token of each request from its logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from swaa_runtime.request import SamplingParams, TokenLogprob

GREEDY_BELOW = 1e-5
"""Colder than this, the likeliest token takes all there is, and dividing float32 logits could overflow."""


NOT_A_NUMBER = -1
"""Stands for a token id where there are no logits to choose by."""


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


def sample(logits: torch.Tensor, params: SamplingParams, generator: torch.Generator | None) -> torch.Tensor:
    """One token id (int64, no dimensions, on the logits' device) from one row of float32 logits [vocab_size].

    Greedy when the temperature is (next to) 0.
    """
    if params.temperature < GREEDY_BELOW:
        return logits.argmax()
    probs = filter_logits(logits, params).softmax(-1)
    return torch.multinomial(probs, 1, generator=generator)[0]


class DrawnTokens:
    """Tokens that a device has been asked to draw, on their way to the host.

    Attributes:
        token_ids: int64 [n] on the device, NOT_A_NUMBER for a row of logits that are none.
    """

    def __init__(self, token_ids: torch.Tensor) -> None:
        self.token_ids = token_ids
        self._host = token_ids
        self._copied: Any = None
        if token_ids.is_cuda:
            # Now, so that reading waits for nothing that the device is asked for later.
            self._host = torch.empty(token_ids.shape, dtype=token_ids.dtype, pin_memory=True)
            self._host.copy_(token_ids, non_blocking=True)
            make: Any = torch.cuda.Event  # has no types
            self._copied = make()
            self._copied.record()

    def read(self) -> list[int | None]:
        """The tokens, None for NOT_A_NUMBER. Waits for the device."""
        if self._copied is not None:
            self._copied.synchronize()
        return [None if token_id == NOT_A_NUMBER else token_id for token_id in self._host.tolist()]


def draw_rows(logits: torch.Tensor, rows: Sequence[tuple[SamplingParams, torch.Generator | None]]) -> DrawnTokens:
    """A token for each row of float32 logits [n, vocab_size], as `sample` draws it. Does not wait for the device."""
    are_numbers = logits.sum(-1).isfinite()
    token_ids = logits.argmax(-1)
    for index, (params, generator) in enumerate(rows):
        if params.temperature >= GREEDY_BELOW:
            finite = logits[index].nan_to_num()  # a row that is none must not fail the others
            token_ids[index] = sample(finite, params, generator)
    return DrawnTokens(torch.where(are_numbers, token_ids, NOT_A_NUMBER))


def token_logprob(logits: torch.Tensor, token_id: int, num_top: int) -> TokenLogprob:
    """Log-probabilities under the model itself, before temperature and filters."""
    logprobs = logits.log_softmax(-1)
    top = logprobs.topk(num_top) if num_top else None
    return TokenLogprob(
        logprob=float(logprobs[token_id]),
        top_token_ids=tuple(top.indices.tolist()) if top else (),
        top_logprobs=tuple(top.values.tolist()) if top else (),
    )
