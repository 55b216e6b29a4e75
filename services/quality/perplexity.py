"""Perplexity by position: how well the last tokens of a text are predicted, by how much of the text comes before them.

The text is Python's language reference (see tasks/passages.py). The scored tokens count as generated, so that the
recipe's decode rule applies to them; they are computed in one pass, as their ids are known.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from services.quality.results import PERPLEXITY
from services.quality.tasks.passages import reference_text
from swaa_runtime.batch import ScheduledChunk, build_batch
from swaa_runtime.engine import Engine
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import SamplingParams, new_request

SCORED_TOKENS = 256
CHUNK_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class TextSamples:
    """Stretches of one text: for one seed and index they end at the same token, whatever their length."""

    token_ids: Sequence[int]

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> TextSamples:
        """Of the text that ships with Python."""
        return cls(tokenizer(reference_text(), add_special_tokens=False, verbose=False)["input_ids"])

    def sample(self, num_tokens: int, longest_tokens: int, rng: random.Random) -> list[int]:
        """`num_tokens` tokens that end where a sample of `longest_tokens` would.

        Raises:
            ValueError: if the text has fewer than `longest_tokens`.
        """
        if longest_tokens > len(self.token_ids):
            raise ValueError(f"the text has {len(self.token_ids)} tokens, fewer than {longest_tokens}")
        stop = rng.randint(longest_tokens, len(self.token_ids))
        return list(self.token_ids[stop - num_tokens : stop])


def nats_per_token(engine: Engine, token_ids: Sequence[int], recipe: Recipe, num_scored: int = SCORED_TOKENS) -> float:
    """Mean negative log likelihood of the last `num_scored` tokens under the recipe. The engine must be idle."""
    runner, manager = engine.runner, engine.manager
    context, scored = token_ids[:-num_scored], token_ids[-num_scored:]
    sampling = SamplingParams(max_tokens=num_scored)
    request = new_request(PERPLEXITY, context, recipe, runner.shape.num_layers, sampling, sent_token_ids=scored)
    if not manager.reserve(request):
        raise RuntimeError("perplexity needs an idle engine")
    last_hidden: list[torch.Tensor] = []
    try:
        while request.num_remaining_tokens:
            count = min(CHUNK_TOKENS, engine.config.max_step_tokens, request.num_remaining_tokens)
            manager.extend(request, request.num_computed_tokens + count)
            batch = build_batch([ScheduledChunk(request, count)], engine.config.block_size_tokens)
            hidden = runner.forward(batch)
            request.num_computed_tokens += count
            manager.release_unseen(request)
            last_hidden = [torch.cat([*last_hidden, hidden])[-num_scored:]]
    finally:
        manager.free(request)
    logprobs = runner.logits(last_hidden[0]).log_softmax(-1)
    target = torch.tensor(scored, device=logprobs.device)
    return -float(logprobs.gather(1, target[:, None]).mean())
