"""One replica: restores a session's state, runs the turn on the engine, saves the new state.

restore ──▶ engine loop ──▶ tokens
   ▲             │
   │             └─▶ saver: checkpoints, the session ─┐
   └──────────────── session store ◀──────────────────┘
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass, replace

from services.backlog import Backlog, backlog_of
from services.errors import SessionCorrupt, SessionNotFound, StaleSession, StoreUnavailable
from services.replica.engine_loop import EngineLoop, OutputStream
from services.replica.hot_sessions import HotSessions
from services.replica.job import Done, Event, Job, SessionOutcome, SessionUse
from services.replica.lease import Leases
from services.replica.promises import Promises
from services.replica.restorer import Restorer
from services.replica.saver import TurnSaver
from services.replica.turn_trace import restore_span, tell_phases, turn_span
from services.restore_plan import RestorePlan, SavedState, segments_past
from services.sessions.check import check_state, check_tokens
from services.sessions.policy import SessionPolicy
from services.sessions.prefix import prefix_ids, prefix_scope
from services.sessions.store import Manifest, SegmentRef, Store
from services.telemetry.tracing import Span, Tracing
from swaa_runtime.errors import DeadlineExceeded, InvalidRequest, RequestCancelled
from swaa_runtime.kv_cache.restore import Restore
from swaa_runtime.kv_cache.slices import SliceKey
from swaa_runtime.model.loader import LoadedModel
from swaa_runtime.outputs import Checkpoint, Finished, PrefillProgress, StateSlices
from swaa_runtime.request import FinishReason, Request, new_request

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Turn:
    """A turn that runs: its request, and what became of its history, in words."""

    job: Job
    request: Request
    manifest: Manifest | None
    state: SavedState | None
    span: Span
    history: str = "none"
    restore_ms: float = 0.0
    feeding: asyncio.Task[None] | None = None


class Replica:
    """One model on one engine, with access to the sessions of all."""

    def __init__(
        self,
        loaded: LoadedModel,
        engine: EngineLoop,
        bytes_per_block: int,
        bytes_per_token_layer: int,
        store: Store,
        policy: SessionPolicy,
        tracing: Tracing | None = None,
    ) -> None:
        self.model_fingerprint = loaded.fingerprint
        self.shape = loaded.shape
        self.engine = engine
        self.bytes_per_token_layer = bytes_per_token_layer
        self._bytes_per_block = bytes_per_block
        self._store = store
        self._policy = policy
        self._tracing = tracing or Tracing()
        self._leases = Leases(store)
        self._restorer = Restorer(engine, store, loaded.shape)
        self._remaining_tokens: dict[str, int] = {}
        self._accepted = Promises()
        self._hot = HotSessions(engine)

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens of all requests here that have not been computed yet."""
        return sum(self._remaining_tokens.values())

    @property
    def backlog(self) -> Backlog:
        """What there is to do, with the turns that have not reached the engine yet."""
        return self._accepted.added_to(backlog_of(self.engine.load, time.monotonic()))

    @property
    def num_turns(self) -> int:
        """Turns that run here or wait for the engine."""
        return len(self._remaining_tokens)

    def is_hot(self, tenant: str, session_id: str, version: int) -> bool:
        """Whether this version of a session is in KV memory here: its next turn need not fetch anything."""
        return self._hot.find(tenant, session_id, version) is not None

    async def close(self) -> None:
        """Stop what runs in the background. Call when no turn runs any more."""
        await self._leases.close()

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        """Run one turn. Closing the iterator (or cancelling its task) ends the request and frees its memory.

        Raises:
            SessionBusy, StaleSession, StoreUnavailable: before the turn starts.
            OutOfCapacity, InvalidRequest, DeadlineExceeded, EngineFailed: the turn ends, nothing is saved.
        """
        async with contextlib.AsyncExitStack() as stack:
            self._accepted.add(job)
            stack.callback(self._accepted.end, job.request_id)
            span = stack.enter_context(turn_span(self._tracing, job))
            manifest, fence = None, 0
            if job.session is not None:
                fence = await stack.enter_async_context(self._leases.hold(job.session, job.request_id))
                manifest = await self._current(job.session)
            state = await self._saved_state(job, manifest)
            turn = _Turn(job, self._request(job, manifest), manifest, state, span)
            saver = await stack.enter_async_context(await self._saver(turn))
            self._remaining_tokens[job.request_id] = turn.request.num_remaining_tokens
            stack.callback(self._remaining_tokens.pop, job.request_id, None)
            unsaved = stack.enter_context(contextlib.ExitStack())
            if job.session is not None:
                unsaved.callback(self.engine.drop_parked, job.request_id)
            running = stack.enter_context(contextlib.ExitStack())
            running.callback(self.engine.cancel, job.request_id)
            stream = await self._start(turn, stack)
            while True:
                output = await stream.get()
                if isinstance(output, Finished):
                    running.pop_all()
                    break
                if isinstance(output, StateSlices | Checkpoint):
                    saver.put(output)
                    continue
                if isinstance(output, PrefillProgress):
                    self._remaining_tokens[job.request_id] = output.prompt_stop - output.num_computed_tokens
                else:
                    self._accepted.end(job.request_id)
                yield output
            _raise_if_unfinished(output)
            done = await self._finish(turn, saver, output, fence)
            if done.session is not None and done.session.saved:
                unsaved.pop_all()
        # Only now: whoever reads this may start the next turn at once, and the lease must be free by then.
        yield done

    async def _current(self, session: SessionUse) -> Manifest | None:
        """The session as it is stored, which must be what the gateway planned with."""
        if session.version == 0:
            await self._check_new(session)
            return None
        manifest = await self._store.get(session.tenant, session.session_id)
        if manifest.version != session.version:
            raise StaleSession(
                f"session {session.session_id} moved from version {session.version} to {manifest.version}"
            )
        if manifest.model_fingerprint != self.model_fingerprint:
            raise InvalidRequest("x-swaa-session", session.session_id, "belongs to another model")
        check_tokens(manifest, self.shape)
        return manifest

    async def _check_new(self, session: SessionUse) -> None:
        """A key names its session, so an earlier attempt may have saved it since the gateway looked."""
        if not session.idempotency_key:
            return
        with contextlib.suppress(SessionNotFound):
            manifest = await self._store.get(session.tenant, session.session_id)
            raise StaleSession(f"session {session.session_id} is at version {manifest.version} already")

    async def _saved_state(self, job: Job, manifest: Manifest | None) -> SavedState | None:
        """What the plan wants fetched, if it is there still."""
        plan = job.restore
        if plan is None or job.session is None:
            return None
        if plan.source == "session" and manifest is not None and manifest.recipe == job.recipe:
            if manifest.num_kv_tokens:
                return SavedState("session", manifest.num_kv_tokens, manifest.segments, manifest.kv_format)
        elif plan.source == "prefix":
            found = await self._store.find_prefix(job.session.tenant, [plan.prefix_id])
            if found is not None:
                return SavedState("prefix", found.num_tokens, found.segments, self._policy.kv_format, found.prefix_id)
        return None

    def _request(self, job: Job, manifest: Manifest | None) -> Request:
        return new_request(
            job.request_id,
            job.prompt_token_ids,
            job.recipe,
            self.shape.num_layers,
            job.sampling,
            history_token_ids=() if manifest is None else manifest.token_ids,
            history_turns=() if manifest is None else manifest.turns,
            continues=job.session is not None,
            priority=job.priority,
            deadline_s=job.deadline_s,
            ttft_due_s=job.ttft_due_s,
            tpot_ms=job.tpot_ms,
            checkpoint_tokens=0 if job.session is None else self._policy.checkpoint_tokens,
            sent_token_ids=job.sent_token_ids,
        )

    async def _saver(self, turn: _Turn) -> TurnSaver:
        request, session, policy = turn.request, turn.job.session, self._policy
        ids: dict[int, str] = {}
        tenant, quota_bytes = ("", None) if session is None else (session.tenant, session.quota_bytes)
        if session is not None:
            scope = prefix_scope(tenant, session.session_id, policy)
            fingerprint = self.model_fingerprint
            tokens, turns = request.token_ids, request.turns
            # In a thread: hashing a million tokens would hold up everybody else's.
            ids = dict(await asyncio.to_thread(prefix_ids, scope, fingerprint, policy, request.recipe, tokens, turns))
        state = turn.state
        stored = () if state is None or state.kv_format != policy.kv_format else state.segments
        return TurnSaver(self.engine, request.request_id, self._store, tenant, quota_bytes, policy, ids, stored)

    async def _start(self, turn: _Turn, stack: contextlib.AsyncExitStack) -> OutputStream:
        """Hand the request to the engine, its state on its way to it if there is one."""
        request, plan, state = turn.request, turn.job.restore, turn.state
        if turn.manifest is not None and turn.manifest.recipe != request.recipe:
            turn.history = f"recomputed: it was saved under recipe {turn.manifest.recipe_name}"
        elif turn.manifest is not None:
            turn.history = "recomputed: only its tokens are saved"
        if plan is None or state is None:
            if plan is not None and plan.kind == "recompute":
                turn.history = f"recomputed: {plan.reason}"
            return self.engine.submit(request)
        saved_keys = [ref.key for ref in state.segments] if state.kv_format == self._policy.kv_format else []
        if stream := await self._resume(turn, saved_keys):
            turn.history = "hot"
            return stream
        try:
            check_state(request.rules, state.num_tokens, state.segments, state.kv_format, self.shape)
        except SessionCorrupt as exc:
            turn.history = f"recomputed: {exc}"
            return self.engine.submit(request)
        fetched = segments_past(state.segments, plan.compute_stop, request.rules)
        restore = Restore(state.num_tokens, [ref.key for ref in fetched], plan.compute_stop)
        stream = self.engine.submit(request, restore, saved_keys)
        turn.feeding = asyncio.create_task(self._feed(turn, plan, state, fetched))
        stack.callback(turn.feeding.cancel)
        return stream

    async def _resume(self, turn: _Turn, saved_keys: Collection[SliceKey]) -> OutputStream | None:
        """Go on from KV that is here still, if it is."""
        session, manifest = turn.job.session, turn.manifest
        if session is None or manifest is None or turn.job.recipe != manifest.recipe:
            return None
        parked_id = self._hot.find(session.tenant, session.session_id, manifest.version)
        return None if parked_id is None else await self.engine.resume(turn.request, parked_id, saved_keys)

    async def _feed(self, turn: _Turn, plan: RestorePlan, state: SavedState, fetched: Sequence[SegmentRef]) -> None:
        """Fetch the state. What cannot be had is computed: a turn never fails because of that."""
        job, started_s = turn.job, time.monotonic()
        tenant = "" if job.session is None else job.session.tenant
        try:
            with restore_span(turn.span, fetched):
                await self._restorer.feed(tenant, job.request_id, fetched, state.kv_format)
        except (SessionCorrupt, StoreUnavailable) as exc:
            extra = {"request_id": job.request_id, "trace_id": turn.span.trace_id}
            logger.warning("request %s: %s; computing from tokens", job.request_id, exc, extra=extra)
            turn.history = f"recomputed: {exc}"
            await self.engine.abandon_restore(job.request_id)
            return
        turn.restore_ms = (time.monotonic() - started_s) * 1e3
        if plan.kind == "mix":
            turn.history = f"mixed: {plan.compute_stop} tokens computed while the rest was loaded"
        elif state.source == "prefix":
            turn.history = f"prefix: {state.num_tokens} tokens from another session"
        else:
            turn.history = "restored"

    async def _finish(self, turn: _Turn, saver: TurnSaver, finished: Finished, fence: int) -> Done:
        if turn.feeding is not None:
            await turn.feeding
        tell_phases(turn.span, finished)
        outcome, save_ms = None, 0.0
        if turn.job.session is not None:
            started_s = time.monotonic()
            with turn.span.child("store.save", "client") as saving:
                outcome = await self._save(turn, turn.job.session, saver, finished, fence)
                saving.note(saved=outcome.saved, saved_bytes=outcome.saved_bytes)
            save_ms = (time.monotonic() - started_s) * 1e3
        admitted_s = finished.admitted_s or finished.arrival_s
        num_tokens = finished.num_computed_tokens
        return Done(
            reason=finished.reason,
            text=finished.text,
            num_generated_tokens=len(finished.token_ids) - turn.request.prompt_stop,
            num_restored_tokens=finished.num_restored_tokens,
            queue_ms=(admitted_s - finished.arrival_s) * 1e3,
            prefill_ms=0.0 if finished.first_token_s is None else (finished.first_token_s - admitted_s) * 1e3,
            restore_ms=turn.restore_ms,
            save_ms=save_ms,
            resident_bytes=finished.resident_blocks * self._bytes_per_block,
            peak_bytes=finished.peak_blocks * self._bytes_per_block,
            full_attention_bytes=num_tokens * self.shape.num_layers * self.bytes_per_token_layer,
            session=outcome,
        )

    async def _save(
        self, turn: _Turn, session: SessionUse, saver: TurnSaver, finished: Finished, fence: int
    ) -> SessionOutcome:
        """Save the turn. What cannot be saved is said, not raised. A state too large to keep leaves only tokens."""
        old, now_s = turn.manifest, time.time()
        last = replace(turn.request.turns[-1], stop=len(finished.token_ids))
        manifest = Manifest(
            session_id=session.session_id,
            version=(old.version if old else 0) + 1,
            token_ids=finished.token_ids,
            turns=(*turn.request.turns[:-1], last),
            recipe=turn.job.recipe,
            recipe_name=turn.job.recipe_name,
            model_fingerprint=self.model_fingerprint,
            kv_format=self._policy.kv_format,
            num_kv_tokens=0,
            segments=(),
            created_at_s=old.created_at_s if old else now_s,
            updated_at_s=now_s,
            expires_at_s=now_s + self._policy.ttl_s,
            idempotency_key=session.idempotency_key,
        )
        error = await saver.save(manifest, finished.state, fence)
        if error:
            return SessionOutcome(manifest.version - 1, False, error, turn.history, saver.saved_bytes)
        self._hot.remember(session.tenant, session.session_id, manifest.version, turn.job.request_id)
        return SessionOutcome(manifest.version, True, "", turn.history, saver.saved_bytes)


def _raise_if_unfinished(finished: Finished) -> None:
    if finished.reason is FinishReason.CANCELLED:
        raise RequestCancelled("the request was cancelled")
    if finished.reason is FinishReason.DEADLINE:
        raise DeadlineExceeded("the request's deadline passed")
    if finished.reason is FinishReason.NOT_A_NUMBER:
        raise SessionCorrupt("what the session attends to is not finite: its saved state is not one of this model's")
