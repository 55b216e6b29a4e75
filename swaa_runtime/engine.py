"""The engine: schedule, run, sample, one step at a time. Synchronous and single-threaded: one caller owns it.

add ──▶ scheduler.admit ──▶ [restore saved KV] ──▶ scheduler.schedule ──▶ runner.forward ──▶ sample ──▶ outputs
                                                          ▲                                   │
                                                          └──── num_computed_tokens ◀─────────┘
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from swaa_runtime.batch import Batch, ScheduledChunk, build_batch
from swaa_runtime.config import EngineConfig
from swaa_runtime.detokenizer import Decoder, IncrementalDetokenizer
from swaa_runtime.errors import InvalidRequest
from swaa_runtime.kv_cache.manager import KVCacheManager
from swaa_runtime.kv_cache.slices import SliceKey, needed_slices
from swaa_runtime.kv_cache.snapshot import KVSlice, export_slices, import_slices
from swaa_runtime.request import FinishReason, Request, TokenLogprob
from swaa_runtime.runner import ModelRunner
from swaa_runtime.sampler import sample, token_logprob
from swaa_runtime.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """A request's prompt is `num_computed_tokens` of `prompt_stop` along, `num_restored_tokens` of them restored."""

    request_id: str
    num_computed_tokens: int
    prompt_stop: int
    num_restored_tokens: int


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One generated token, and the text that became certain with it (may be empty)."""

    request_id: str
    token_id: int
    text: str
    logprob: TokenLogprob | None


@dataclass(frozen=True, slots=True)
class SavedState:
    """State of a finished turn: the whole list of slices, and the data of those that were not saved before."""

    num_tokens: int
    keys: tuple[SliceKey, ...]
    slices: tuple[KVSlice, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """A request's last output. Its blocks are free by now. Times are on time.monotonic's clock."""

    request_id: str
    reason: FinishReason
    text: str
    token_ids: tuple[int, ...]
    num_restored_tokens: int
    num_computed_tokens: int
    resident_blocks: int
    peak_blocks: int
    arrival_s: float
    admitted_s: float | None
    first_token_s: float | None
    state: SavedState | None


Output = PrefillProgress | TokenOutput | Finished


@dataclass(frozen=True, slots=True)
class RestoredState:
    """KV of a history's first `num_tokens` tokens, to be put into the pool on admission."""

    num_tokens: int
    slices: tuple[KVSlice, ...]


@dataclass(slots=True)
class _Live:
    """What the engine keeps per request beside the request itself."""

    request: Request
    detokenizer: IncrementalDetokenizer
    generator: torch.Generator | None
    restored: RestoredState | None
    saved_keys: Collection[SliceKey]


class Engine:
    """Continuous batching of requests with different recipes over one model."""

    def __init__(self, runner: ModelRunner, config: EngineConfig, decoder: Decoder, eos_token_ids: Collection[int]):
        """`decoder` turns token ids into text; `eos_token_ids` end a request unless it ignores them."""
        self.config = config
        self.runner = runner
        self.manager = KVCacheManager(config.num_blocks, config.block_size_tokens, config.max_step_tokens)
        self.scheduler = Scheduler(self.manager, config.max_step_tokens, config.max_running, config.max_waiting)
        self._decoder = decoder
        self._eos_token_ids = frozenset(eos_token_ids)
        self._live: dict[str, _Live] = {}
        self.on_freed: Callable[[list[int]], None] | None = None  # tests poison what is freed

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return any(not request.paused for request in self.scheduler.requests)

    def add(
        self, request: Request, restored: RestoredState | None = None, saved_keys: Collection[SliceKey] = ()
    ) -> None:
        """Queue a request.

        Args:
            restored: KV state of the start of its history.
            saved_keys: parts of the state that are stored already and need not be exported again.

        Raises:
            InvalidRequest: for a token id the model does not have, too many tokens, or an id in use.
            OutOfCapacity: if the queue is full or the pool too small for it.
        """
        shape, limit = self.runner.shape, self.config.max_model_tokens
        if request.request_id in self._live:
            raise InvalidRequest("request_id", request.request_id, "is in use")
        for token_id in request.token_ids:
            if not 0 <= token_id < shape.vocab_size:
                raise InvalidRequest("token_ids", token_id, f"must be in 0..{shape.vocab_size - 1}")
        if request.prompt_stop + request.sampling.max_tokens > limit:
            raise InvalidRequest(
                "prompt",
                f"{request.prompt_stop} tokens + max_tokens {request.sampling.max_tokens}",
                f"session, prompt and max_tokens together must not exceed {limit} tokens",
            )
        generator = None
        if request.sampling.temperature > 0.0:
            generator = torch.Generator(device=self.runner.device)
            seed = request.sampling.seed
            generator.manual_seed(seed) if seed is not None else generator.seed()
        self.scheduler.add(request)
        detokenizer = IncrementalDetokenizer(self._decoder, request.sampling.stop)
        self._live[request.request_id] = _Live(request, detokenizer, generator, restored, saved_keys)

    def cancel(self, request_id: str) -> list[Output]:
        """End a request and free its blocks now. Nothing happens if it has ended already."""
        live = self._live.get(request_id)
        return [] if live is None else [self._finish(live.request, FinishReason.CANCELLED)]

    def set_paused(self, request_id: str, paused: bool) -> None:
        """Hold back a request whose reader is slow, or let it go on. It keeps its memory meanwhile."""
        live = self._live.get(request_id)
        if live is not None:
            live.request.paused = paused

    def step(self) -> list[Output]:
        """Run one step of at most `max_step_tokens` tokens and return what came of it."""
        outputs = self._expire()
        self._admit()
        scheduled = self.scheduler.schedule()
        if not scheduled:
            return outputs
        batch = build_batch(scheduled, self.config.block_size_tokens, self.runner.device)
        hidden = self.runner.forward(batch)
        for chunk in scheduled:
            outputs += self._advance(chunk)
        if batch.sampled:
            outputs += self._sample(batch, self.runner.logits(hidden[batch.sampled_rows]))
        return outputs

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every block is either free or held once by a live request."""
        self.manager.check_integrity(self.scheduler.requests)

    def _expire(self) -> list[Output]:
        now = time.monotonic()
        late = [r for r in self.scheduler.requests if r.deadline_s is not None and r.deadline_s <= now]
        return [self._finish(request, FinishReason.DEADLINE) for request in late]

    def _admit(self) -> None:
        for request in self.scheduler.admit():
            request.admitted_s = time.monotonic()
            live = self._live[request.request_id]
            if live.restored is not None:
                import_slices(
                    request, self.manager, self.runner.storage, live.restored.slices, live.restored.num_tokens
                )
                live.restored = None

    def _advance(self, chunk: ScheduledChunk) -> list[Output]:
        """Count a chunk as computed and free what nothing can see any more."""
        request = chunk.request
        was_prefill = request.num_computed_tokens < request.prompt_stop
        request.num_computed_tokens += chunk.num_tokens
        self._freed(self.manager.release_unseen(request))
        if not was_prefill:
            return []
        return [
            PrefillProgress(
                request.request_id, request.num_computed_tokens, request.prompt_stop, request.num_restored_tokens
            )
        ]

    def _sample(self, batch: Batch, logits: torch.Tensor) -> list[Output]:
        outputs: list[Output] = []
        for request, row in zip(batch.sampled, logits, strict=True):
            live = self._live[request.request_id]
            token_id = sample(row, request.sampling, live.generator)
            wanted = request.sampling.logprobs
            logprob = None if wanted is None else token_logprob(row, token_id, wanted)
            request.token_ids.append(token_id)
            if request.first_token_s is None:
                request.first_token_s = time.monotonic()
            is_eos = token_id in self._eos_token_ids and not request.sampling.ignore_eos
            text = "" if is_eos else live.detokenizer.push(token_id)
            outputs.append(TokenOutput(request.request_id, token_id, text, logprob))
            if is_eos or live.detokenizer.stopped:
                outputs.append(self._finish(request, FinishReason.STOP))
            elif request.num_generated_tokens >= request.sampling.max_tokens:
                outputs.append(self._finish(request, FinishReason.LENGTH))
        return outputs

    def _finish(self, request: Request, reason: FinishReason) -> Finished:
        live = self._live.pop(request.request_id)
        held = request.num_held_blocks
        ended_well = reason in (FinishReason.STOP, FinishReason.LENGTH)
        state = self._export(live) if request.continues and ended_well else None
        self._freed(self.scheduler.remove(request))
        request.finish_reason = reason
        return Finished(
            request_id=request.request_id,
            reason=reason,
            text=live.detokenizer.finish(),
            token_ids=tuple(request.token_ids),
            num_restored_tokens=request.num_restored_tokens,
            num_computed_tokens=request.num_computed_tokens,
            resident_blocks=held,
            peak_blocks=request.peak_blocks,
            arrival_s=request.arrival_s,
            admitted_s=request.admitted_s,
            first_token_s=request.first_token_s,
            state=state,
        )

    def _export(self, live: _Live) -> SavedState:
        request, storage = live.request, self.runner.storage
        keys = needed_slices(request.rules, request.num_computed_tokens, storage.bytes_per_token_layer)
        new = [key for key in keys if key not in live.saved_keys]
        return SavedState(request.num_computed_tokens, tuple(keys), tuple(export_slices(request, storage, new)))

    def _freed(self, blocks: Sequence[int]) -> None:
        if self.on_freed is not None and blocks:
            self.on_freed(list(blocks))
