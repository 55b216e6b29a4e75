"""One request's generated side: the next token from its logits, text from its tokens, and when it is enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

import torch

from swaa_runtime.detokenizer import Decoder, IncrementalDetokenizer
from swaa_runtime.outputs import TokenOutput
from swaa_runtime.request import FinishReason, Request, SamplingParams
from swaa_runtime.sampler import sample, token_logprob

WARM = SamplingParams(temperature=1.0)
"""A draw with these takes as much of a generator as any other."""


class Generation:
    """Samples for one request. A request that goes on from tokens generated elsewhere catches up with them first.

    Args:
        decoder: turns token ids into text; eos_token_ids: end the request unless it ignores them.
        vocab_size, device: of the logits.
        clock: tells when the first token came.
    """

    def __init__(
        self,
        request: Request,
        decoder: Decoder,
        eos_token_ids: Collection[int],
        vocab_size: int,
        device: torch.device,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._request = request
        self._clock = clock
        self._eos_token_ids = eos_token_ids
        self._detokenizer = IncrementalDetokenizer(decoder, request.sampling.stop)
        self._generator: torch.Generator | None = None
        if request.sampling.temperature > 0.0:
            self._generator = torch.Generator(device=device)
            seed = request.sampling.seed
            self._generator.manual_seed(seed) if seed is not None else self._generator.seed()
        for token_id in request.token_ids[request.prompt_stop :]:
            self._detokenizer.push(token_id)
            if self._generator is not None:
                sample(torch.zeros(vocab_size, device=device), WARM, self._generator)

    @property
    def draw(self) -> tuple[SamplingParams, torch.Generator | None]:
        """How its next token is sampled. See `sampler.draw_rows`."""
        return self._request.sampling, self._generator

    def next(self, token_id: int, logits: torch.Tensor) -> tuple[TokenOutput, FinishReason | None]:
        """Append a token sampled from float32 logits [vocab_size] to the request; and why it ends, if it does."""
        request, sampling = self._request, self._request.sampling
        if request.forced_token_id is not None:
            token_id, request.forced_token_id = request.forced_token_id, None
        logprob = None if sampling.logprobs is None else token_logprob(logits, token_id, sampling.logprobs)
        request.token_ids.append(token_id)
        if request.first_token_s is None:
            request.first_token_s = self._clock()
        is_eos = token_id in self._eos_token_ids and not sampling.ignore_eos
        text = "" if is_eos else self._detokenizer.push(token_id)
        reason = None
        if is_eos or self._detokenizer.stopped:
            reason = FinishReason.STOP
        elif request.num_left_tokens <= 0:
            reason = FinishReason.LENGTH
        return TokenOutput(request.request_id, token_id, text, logprob), reason

    def finish(self) -> str:
        """Text that was held back, when no more tokens come."""
        return self._detokenizer.finish()
