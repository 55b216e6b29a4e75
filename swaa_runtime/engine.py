"""The engine: schedule, run, sample, one step at a time. Synchronous and single-threaded: one caller owns it.

add ──▶ scheduler.admit ──▶ [restore saved KV] ──▶ scheduler.schedule ──▶ runner.forward ──▶ sample ──▶ outputs
                                                          ▲                                   │
                                                          └──── num_computed_tokens ◀─────────┘

Between the layers of a long step newcomers with little to compute may have one of their own: see `interrupt`.

A session's request leaves its state: exported slice by slice after its last token, then parked for the next turn.
A preempted request's state goes to host memory and comes back when it is admitted again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from swaa_runtime.ahead import StepAhead
from swaa_runtime.batch import Batch, ScheduledChunk, build_batch
from swaa_runtime.config import EngineConfig
from swaa_runtime.detokenizer import Decoder
from swaa_runtime.errors import InvalidRequest
from swaa_runtime.generation import Generation
from swaa_runtime.interruption import LongStep
from swaa_runtime.kv_cache.export import Export, ExportQueue
from swaa_runtime.kv_cache.manager import KVCacheManager
from swaa_runtime.kv_cache.parked import ParkedStates
from swaa_runtime.kv_cache.restore import Restore
from swaa_runtime.kv_cache.slices import KVSlice, SliceKey, state_bytes
from swaa_runtime.kv_cache.snapshot import export_slices
from swaa_runtime.kv_cache.swap import SwappedStates
from swaa_runtime.load import EngineLoad
from swaa_runtime.outputs import Checkpoint, ExportedState, Finished, Output, PrefillProgress, StateSlices, TokenOutput
from swaa_runtime.request import FinishReason, Request
from swaa_runtime.runner import ModelRunner
from swaa_runtime.sampler import DrawnTokens, draw_rows
from swaa_runtime.scheduler import Scheduler
from swaa_runtime.step_cost import StepCost, UnknownCost
from swaa_runtime.step_timer import StepTimer
from swaa_runtime.usage import EngineUsage, count_blocks, count_running


@dataclass(slots=True)
class _Live:
    """What the engine keeps per request beside the request itself.

    `saved_keys`: slices that the store has. `checkpoint_open`: one is on its way to the store.
    """

    request: Request
    generation: Generation
    restore: Restore | None
    saved_keys: set[SliceKey]
    checkpoint_open: bool = False


class Engine:
    """Continuous batching of requests with different recipes over one model."""

    def __init__(
        self,
        runner: ModelRunner,
        config: EngineConfig,
        decoder: Decoder,
        eos_token_ids: Collection[int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`decoder` turns token ids into text; `eos_token_ids` end a request unless it ignores them.

        `clock`: in seconds; deadlines and due times of requests are told on it.
        """
        self.config = config
        self.runner = runner
        self.manager = KVCacheManager(config.num_blocks, config.block_size_tokens, config.max_step_tokens)
        self._cost: StepCost = UnknownCost()
        self._clock = clock
        self.scheduler = Scheduler(self.manager, config, self._cost, clock, runner.query_multiple)
        self.parked = ParkedStates(self.manager)
        self.swapped = SwappedStates(self.manager, runner.storage, config.max_swapped_bytes, config.export_step_bytes)
        self._exports = ExportQueue(runner.storage, config.export_step_bytes)
        self._decoder = decoder
        self._eos_token_ids = frozenset(eos_token_ids)
        self._live: dict[str, _Live] = {}
        self._in_flight: LongStep | None = None
        self._ahead: StepAhead | None = None
        self._load = self._new_load()
        self._unfinished: tuple[Sequence[ScheduledChunk], StepTimer] | None = None
        self.on_freed: Callable[[list[int]], None] | None = None  # tests poison what is freed

    def set_cost(self, cost: StepCost) -> None:
        """What steps take here, now that it has been measured. It is told what each step has taken."""
        self._cost = cost
        self.scheduler.set_cost(cost)

    @property
    def load(self) -> EngineLoad:
        """What there was to do after the last step, or when a request came or went since. Any thread may read it."""
        return self._load

    def _new_load(self) -> EngineLoad:
        """In the midst of a step it is that of the step's beginning: what that runs is counted as not done."""
        load = self.scheduler.load()
        return load if self._in_flight is None else replace(load, taken_s=self._in_flight.began_s)

    def usage(self) -> EngineUsage:
        """What memory and engine are used for now. Takes time that grows with what is used: not for every step."""
        requests, load = self.scheduler.requests, self.scheduler.load()
        num_running, num_waiting = count_running(requests)
        return EngineUsage(
            num_running=num_running,
            num_waiting=num_waiting,
            num_blocks=count_blocks(self.manager.pool, requests, self.parked.requests),
            block_bytes=self.runner.storage.bytes_per_block,
            prefill_ms=load.prefill_ms,
            num_preemptions=self.scheduler.num_preemptions,
            swapped_bytes=self.swapped.num_bytes,
        )

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.moves_states or any(not request.paused for request in self.scheduler.requests)

    @property
    def moves_states(self) -> bool:
        """Whether a step would copy states, out of the pool or back into it."""
        return bool(self._exports) or self.swapped.is_moving

    def add(self, request: Request, restore: Restore | None = None, saved_keys: Collection[SliceKey] = ()) -> None:
        """Queue a request.

        Args:
            restore: KV state of the start of its tokens, whose slices `place` brings.
            saved_keys: slices of the state that are stored already and need not be exported again.

        Raises:
            InvalidRequest: for a token id the model does not have, too many tokens, or an id in use.
            OutOfCapacity: if the queue is full, too much work is queued, or the pool is too small for it.
        """
        self._check(request)
        self.scheduler.add(request)
        self._enter(request, restore, saved_keys)

    def resume(self, request: Request, parked_id: str, saved_keys: Collection[SliceKey] = ()) -> bool:
        """Run a request at once from the state that the request `parked_id` left in the pool.

        False, and nothing happens, if the state is gone or there is no room to run now. Raises as `add` does.
        """
        self._check(request)
        self.manager.check_fits(request)
        if self.scheduler.is_full:
            return False
        freed = self.parked.adopt(request, parked_id)
        if freed is None:
            return False
        self._freed(freed)
        request.admitted_s = self._clock()
        self.scheduler.run(request)
        self._enter(request, None, saved_keys)
        return True

    def _check(self, request: Request) -> None:
        shape, limit = self.runner.shape, self.config.max_model_tokens
        if request.request_id in self._live:
            raise InvalidRequest("request_id", request.request_id, "is in use")
        for token_id in (min(request.token_ids), max(request.token_ids)):
            if not 0 <= token_id < shape.vocab_size:
                raise InvalidRequest("token_ids", token_id, f"must be in 0..{shape.vocab_size - 1}")
        self.runner.adapters.check(request.recipe)
        if request.prompt_stop + request.sampling.max_tokens > limit:
            raise InvalidRequest(
                "prompt",
                f"{request.prompt_stop} tokens + max_tokens {request.sampling.max_tokens}",
                f"session, prompt and max_tokens together must not exceed {limit} tokens",
            )

    def _enter(self, request: Request, restore: Restore | None, saved_keys: Collection[SliceKey]) -> None:
        shape, device = self.runner.shape, self.runner.device
        generation = Generation(request, self._decoder, self._eos_token_ids, shape.vocab_size, device, self._clock)
        self._live[request.request_id] = _Live(request, generation, restore, set(saved_keys))
        if restore is not None:
            request.restoring = (restore.compute_stop, restore.num_tokens)
        self._load = self._new_load()

    def place(self, request_id: str, slices: Iterable[KVSlice]) -> None:
        """Bring slices of the state that a request restores. Nothing happens if it has ended or given up on them."""
        live = self._live.get(request_id)
        if live is not None and live.restore is not None:
            live.restore.add(slices)

    def abandon_restore(self, request_id: str) -> None:
        """The rest of a state cannot be had: the request computes it from its tokens."""
        live = self._live.get(request_id)
        if live is not None and live.restore is not None:
            self._freed(live.restore.abandon(live.request, self.manager))
            live.restore = live.request.restoring = None
            live.saved_keys.clear()

    def confirm_saved(self, request_id: str, keys: Iterable[SliceKey], lost: Iterable[SliceKey] = ()) -> None:
        """The store has these slices of the request's last checkpoint (none if that failed); another may follow.

        `lost`: slices that it had, and has no more; they are exported again.
        """
        live = self._live.get(request_id)
        if live is not None:
            live.saved_keys.update(keys)
            live.saved_keys.difference_update(lost)
            live.checkpoint_open = False

    def export_parked(self, request_id: str, keys: Iterable[SliceKey]) -> list[KVSlice] | None:
        """Copy slices of the state that a finished request left in the pool, all at once; None if it is gone."""
        parked = self.parked.find(request_id)
        return None if parked is None else export_slices(parked, self.runner.storage, keys)

    def drop_parked(self, request_id: str) -> None:
        """Free the state that a finished request left in the pool. Nothing happens if it is gone."""
        self._freed(self.parked.drop(request_id))

    def cancel(self, request_id: str) -> list[Output]:
        """End a request and free its blocks now. Nothing happens if it has ended already."""
        live = self._live.get(request_id)
        if live is None:
            return []
        outputs = self._finish(live.request, FinishReason.CANCELLED)
        self._load = self._new_load()
        return outputs

    def set_paused(self, request_id: str, paused: bool) -> None:
        """Hold back a request whose reader is slow, or let it go on. It keeps its memory meanwhile."""
        live = self._live.get(request_id)
        if live is not None:
            live.request.paused = paused

    def step(self, between_layers: Callable[[], None] | None = None) -> list[Output]:
        """Run one step of at most `max_step_tokens` tokens and return what came of it.

        Args:
            between_layers: called before a long step and between its layers. It may do what touches nothing that the
                step uses: `add`, `resume`, `place`, `confirm_saved`, `set_paused`. And it must call `interrupt`, as the
                step may have left newcomers to that.
        """
        outputs = self._expire()
        self._admit()
        self._preempt()
        self._restore()
        timer = self.runner.timer()
        if not self.runner.is_interruptible:
            between_layers = None
        scheduled = self.scheduler.schedule(interruptible=between_layers is not None)
        if between_layers is not None and (num_interruptions := self.scheduler.num_interruptions(scheduled)):
            outputs += self._run_long(scheduled, timer, num_interruptions, between_layers)
        elif scheduled:
            outputs += self._run(scheduled, timer)
        for export, slices in self._exports.step():
            outputs += self._exported(export, slices)
        self._load = self._new_load()
        return outputs

    def interrupt(self) -> list[Output]:
        """Before and between the layers of a long step: run one with newcomers alone, and return what came of it.

        Nothing happens if there are none, at any other time, or once the step has been interrupted often enough.
        """
        if self._in_flight is None or self._in_flight.num_left == 0:
            return []
        self._admit()
        scheduled = self.scheduler.schedule_newcomers(self._in_flight.request_ids)
        if not scheduled:
            return []
        timer = self.runner.timer()
        outputs = self._run(scheduled, timer)
        self._in_flight.interrupted(timer)
        self._load = self._new_load()
        return outputs

    def _run_long(
        self,
        scheduled: Sequence[ScheduledChunk],
        timer: StepTimer,
        num_interruptions: int,
        between_layers: Callable[[], None],
    ) -> list[Output]:
        request_ids = frozenset(chunk.request.request_id for chunk in scheduled)
        step = self._in_flight = LongStep(request_ids, num_interruptions, self._clock(), timer)
        try:
            between_layers()
            return self._run(scheduled, step, between_layers)
        finally:
            self._in_flight = None

    def _run(
        self,
        scheduled: Sequence[ScheduledChunk],
        timer: StepTimer,
        between_layers: Callable[[], None] | None = None,
    ) -> list[Output]:
        """Run a step. While a device computes it, the host does what does not depend on its tokens.

        A step that samples nothing is not waited for but by the next, so that a prompt's chunks follow one another
        without a gap; no more than one is ahead. Nor is a step that only decodes: see `_run_ahead`.
        """
        batch = build_batch(scheduled, self.config.block_size_tokens, self.config.skip_unseen)
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.is_of(batch):
            logits, timer = ahead.logits, ahead.timer
        else:
            logits = self.runner.run(batch, between_layers)
        outputs = [output for chunk in scheduled for output in self._advance(chunk)]
        self._observe_unfinished()
        draws = [self._live[request.request_id].generation.draw for request in batch.sampled]
        drawn = draw_rows(logits, draws) if draws else None
        timer.stop()
        self._unfinished = (scheduled, timer)
        sampled = [] if drawn is None else self._take(batch, logits, drawn)
        self.runner.check()
        if sampled or timer.is_done():
            self._observe_unfinished()
        for request, output, reason in sampled:
            if output is not None:
                outputs.append(output)
            if reason is not None:
                outputs += self._finish(request, reason)
        return outputs

    def _observe_unfinished(self) -> None:
        """Wait for the step that was not waited for, if there is one, and tell what it took."""
        if self._unfinished is not None:
            scheduled, timer = self._unfinished
            self._unfinished = None
            self._cost.observe(scheduled, timer.elapsed_ms())

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every block is free or held once, by a live request or a parked state.

        And unless every live request has its state, in the pool or in host memory, which has no other.
        """
        exporting = [request for request in self._exports.requests if request.finish_reason is not None]
        self.manager.check_integrity([*self.scheduler.requests, *exporting, *self.parked.requests])
        self.swapped.check_integrity(self.scheduler.requests)

    def _expire(self) -> list[Output]:
        now = self._clock()
        late = [r for r in self.scheduler.requests if r.deadline_s is not None and r.deadline_s <= now]
        return [output for request in late for output in self._finish(request, FinishReason.DEADLINE)]

    def _admit(self) -> None:
        for request in self.scheduler.admit(self._make_room):
            if request.admitted_s is None:
                request.admitted_s = self._clock()
            restore = self._live[request.request_id].restore
            if request.request_id in self.swapped:
                self.swapped.bring_back(request)
            elif restore is not None:
                restore.begin(request, self.manager, self.runner.storage)

    def _make_room(self, num_blocks: int) -> bool:
        """Free parked states for so many blocks; none if that would not be enough."""
        if num_blocks > self.parked.num_blocks:
            return False
        self._freed(self.parked.make_room(num_blocks))
        return True

    def _preempt(self) -> None:
        """Take out whoever has to make room, and admit those for whom that was done once the states are copied."""
        victims = self.scheduler.preempt(self._movable_bytes, self.swapped.free_bytes, self.parked.num_blocks)
        for request in victims:
            self.swapped.take(request)
        copied = self.swapped.copy_out(self.scheduler.leaving)
        for request in copied:
            self._freed(self.manager.free(request))
            self.scheduler.requeue(request)
        if copied:
            self._admit()

    def _movable_bytes(self, request: Request) -> int | None:
        """Host memory for a request's state; None while it is on its way in, or a checkpoint of it on its way out."""
        moving = request.request_id in self.swapped or request.request_id in self._exports
        if moving or self._live[request.request_id].restore is not None:
            return None
        return self.swapped.size_bytes(request)

    def _restore(self) -> None:
        """Place what has come of saved and of swapped states."""
        self.swapped.copy_in()
        for request in self.scheduler.running:
            live = self._live[request.request_id]
            if live.restore is not None:
                freed = live.restore.advance(request, self.manager, self.runner.storage)
                if freed is not None:
                    live.restore = request.restoring = None
                    self._freed(freed)

    def _advance(self, chunk: ScheduledChunk) -> list[Output]:
        """Count a chunk as computed and free what nothing can see any more."""
        request = chunk.request
        was_prefill = request.num_computed_tokens < request.prompt_stop
        request.num_computed_tokens += chunk.num_tokens
        self._freed(self.manager.release_unseen(request))
        self._checkpoint(self._live[request.request_id])
        if not was_prefill:
            return []
        return [
            PrefillProgress(
                request.request_id, request.num_computed_tokens, request.prompt_stop, request.num_restored_tokens
            )
        ]

    def _take(
        self, batch: Batch, logits: torch.Tensor, drawn: DrawnTokens
    ) -> list[tuple[Request, TokenOutput | None, FinishReason | None]]:
        """The next token of each request whose known tokens are all computed now, and whether that was its last.

        Logits that are no numbers end their own request, before anything that others run by is told of them.
        """
        ahead = self._run_ahead(batch, drawn)
        token_ids = drawn.read()
        if ahead is not None:
            self._ahead = StepAhead(batch, token_ids, *ahead)
        return [
            (request, None, FinishReason.NOT_A_NUMBER)
            if token_id is None
            else (request, *self._live[request.request_id].generation.next(token_id, row))
            for request, token_id, row in zip(batch.sampled, token_ids, logits, strict=True)
        ]

    def _run_ahead(self, batch: Batch, drawn: DrawnTokens) -> tuple[torch.Tensor, StepTimer] | None:
        """If all that will be to do is the next token of the same requests, ask for that now: its logits, and its time.

        See `ahead`. Whoever ends for another reason than its length, or comes meanwhile, costs one step in vain.
        """
        requests = batch.sampled
        if self._in_flight is not None or self.moves_states or not self.runner.runs_ahead_of(batch):
            return None
        if sum(not request.paused for request in self.scheduler.requests) > len(requests):
            return None
        if any(request.num_left_tokens <= 1 for request in requests):
            return None
        for request in requests:
            self.manager.extend(request, request.num_computed_tokens + 1)
        timer = self.runner.timer()
        return self.runner.run_next(batch, drawn.token_ids), timer

    def _checkpoint(self, live: _Live) -> None:
        """Export the state at a checkpoint, unless the last one is on its way still: a slow store costs checkpoints."""
        request = live.request
        wanted = request.is_checkpoint(request.num_computed_tokens) and live.restore is None
        if wanted and not live.checkpoint_open and self._is_exportable(request):
            live.checkpoint_open = True
            request.compute_limit = request.num_computed_tokens
            self._exports.start(request, live.saved_keys)

    def _is_exportable(self, request: Request) -> bool:
        per_token_layer = self.runner.storage.bytes_per_token_layer
        return state_bytes(request.rules, request.num_computed_tokens, per_token_layer) <= self.config.max_state_bytes

    def _exported(self, export: Export, slices: tuple[KVSlice, ...]) -> list[Output]:
        request = export.request
        outputs: list[Output] = [StateSlices(request.request_id, slices)] if slices else []
        if not export.done:
            return outputs
        state = ExportedState(export.num_tokens, export.keys)
        if request.finish_reason is not None:
            return [*outputs, self._end(request, request.finish_reason, state)]
        request.compute_limit = None
        return [*outputs, Checkpoint(request.request_id, state)]

    def _finish(self, request: Request, reason: FinishReason) -> list[Output]:
        """End a request. If its state is wanted, its last output comes when that has been exported."""
        live = self._live[request.request_id]
        self._exports.cancel(request.request_id)
        if request.finish_reason is None:
            self.scheduler.retire(request)
        ended_well = reason in (FinishReason.STOP, FinishReason.LENGTH)
        request.finish_reason = reason
        if request.continues and ended_well and self._is_exportable(request):
            self._exports.start(request, live.saved_keys)
            return []
        return [self._end(request, reason, None)]

    def _end(self, request: Request, reason: FinishReason, state: ExportedState | None) -> Finished:
        live = self._live.pop(request.request_id)
        self.swapped.drop(request.request_id)
        held = request.num_held_blocks
        if state is None:
            self._freed(self.manager.free(request))
        else:
            self.parked.park(request)
        return Finished(
            request_id=request.request_id,
            reason=reason,
            text=live.generation.finish(),
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

    def _freed(self, blocks: Sequence[int]) -> None:
        if self.on_freed is not None and blocks:
            self.on_freed(list(blocks))
