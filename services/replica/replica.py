"""One replica: restores a session's state, runs the turn on the engine, saves the new state.

restore ──▶ engine loop ──▶ tokens ──▶ save
   ▲                                     │
   └────────── session store ◀───────────┘
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, replace

from services.errors import SessionBusy, SessionCorrupt, StaleSession, StoreUnavailable
from services.replica.engine_loop import EngineLoop
from services.replica.job import Done, Event, Job, SessionOutcome, SessionUse
from services.sessions.check import check_segments, check_tokens
from services.sessions.codec import decode_slice, encode_slice, segment_id
from services.sessions.store import Manifest, SegmentRef, SessionStore
from swaa_runtime.engine import Finished, PrefillProgress, RestoredState, SavedState
from swaa_runtime.errors import DeadlineExceeded, InvalidRequest, RequestCancelled
from swaa_runtime.model.loader import LoadedModel
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import FinishReason, Request, new_request

logger = logging.getLogger(__name__)

LEASE_RENEW_S = 5.0


@dataclass(frozen=True, slots=True)
class _History:
    """A session's state as far as it could be brought back. `how` says it in words."""

    manifest: Manifest | None
    restored: RestoredState | None
    how: str
    restore_ms: float


NO_HISTORY = _History(None, None, "none", 0.0)


class Replica:
    """One model on one engine, with access to the sessions of all."""

    def __init__(
        self,
        loaded: LoadedModel,
        engine: EngineLoop,
        bytes_per_block: int,
        bytes_per_token_layer: int,
        store: SessionStore,
        session_ttl_s: float,
    ) -> None:
        self.model_fingerprint = loaded.fingerprint
        self.shape = loaded.shape
        self.engine = engine
        self.bytes_per_token_layer = bytes_per_token_layer
        self._bytes_per_block = bytes_per_block
        self._store = store
        self._session_ttl_s = session_ttl_s
        self._remaining_tokens: dict[str, int] = {}

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens of all requests here that have not been computed yet."""
        return sum(self._remaining_tokens.values())

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        """Run one turn. Closing the iterator (or cancelling its task) ends the request and frees its memory.

        Raises:
            SessionBusy, StaleSession, SessionCorrupt, StoreUnavailable: before the turn starts.
            OutOfCapacity, InvalidRequest, DeadlineExceeded, EngineFailed: the turn ends, nothing is saved.
        """
        async with contextlib.AsyncExitStack() as stack:
            history = NO_HISTORY
            if job.session is not None:
                await stack.enter_async_context(self._lease(job.session, job.request_id))
                history = await self._restore(job.session, job.recipe)
            request = self._request(job, history)
            self._remaining_tokens[job.request_id] = request.num_remaining_tokens
            stack.callback(self._remaining_tokens.pop, job.request_id, None)
            saved_keys = () if history.restored is None else [part.key for part in history.restored.slices]
            stream = self.engine.submit(request, history.restored, saved_keys)
            stack.callback(self.engine.cancel, job.request_id)
            last_token_s = 0.0
            while True:
                output = await stream.get()
                if isinstance(output, Finished):
                    break
                if isinstance(output, PrefillProgress):
                    self._remaining_tokens[job.request_id] = output.prompt_stop - output.num_computed_tokens
                else:
                    last_token_s = time.monotonic()
                yield output
            _raise_if_unfinished(output)
            done = await self._finish(job, request, history, output, last_token_s)
        # Only now: whoever reads this may start the next turn at once, and the lease must be free by then.
        yield done

    @contextlib.asynccontextmanager
    async def _lease(self, session: SessionUse, owner: str) -> AsyncIterator[None]:
        """Hold the session's lease, renewing it, so that no two turns of a session run at once."""
        await self._store.acquire(session.tenant, session.session_id, owner)
        leaving = asyncio.Event()

        async def keep() -> None:
            while not leaving.is_set():
                await asyncio.sleep(LEASE_RENEW_S)
                # A lost lease does not end the turn: saving compares versions, so a stale writer changes nothing.
                with contextlib.suppress(StoreUnavailable, SessionBusy):
                    await self._store.renew(session.tenant, session.session_id, owner)

        renewing = asyncio.create_task(keep())

        async def release() -> None:
            await asyncio.wait([renewing])
            with contextlib.suppress(StoreUnavailable):  # it runs out by itself
                await self._store.release(session.tenant, session.session_id, owner)

        try:
            yield
        finally:
            leaving.set()  # the cancellation alone may be lost: in Python 3.11 asyncio.wait_for swallows some
            renewing.cancel()
            await asyncio.shield(release())

    async def _restore(self, session: SessionUse, recipe: Recipe) -> _History:
        """Bring back the history: its KV if it fits the recipe and checks out, else only its tokens."""
        planned = session.manifest
        if planned is None:
            return NO_HISTORY
        manifest = await self._store.get(session.tenant, session.session_id)
        if manifest.version != planned.version:
            raise StaleSession(
                f"session {session.session_id} moved from version {planned.version} to {manifest.version}"
            )
        if manifest.model_fingerprint != self.model_fingerprint:
            raise InvalidRequest("x-swaa-session", session.session_id, "belongs to another model")
        check_tokens(manifest, self.shape)
        if manifest.recipe != recipe:
            return _History(manifest, None, f"recomputed: it was saved under recipe {manifest.recipe_name}", 0.0)
        started_s = time.monotonic()
        try:
            restored = await self._fetch(session.tenant, manifest)
        except SessionCorrupt as exc:
            logger.warning("session %s: %s; recomputing from its tokens", session.session_id, exc)
            return _History(manifest, None, f"recomputed: {exc}", 0.0)
        return _History(manifest, restored, "restored", (time.monotonic() - started_s) * 1e3)

    async def _fetch(self, tenant: str, manifest: Manifest) -> RestoredState:
        shape = self.shape
        check_segments(manifest, shape)
        blobs = await self._store.fetch(tenant, manifest.segments)
        slices = tuple(
            decode_slice(ref, blob, shape.num_kv_heads, shape.head_dim, shape.dtype, manifest.kv_format)
            for ref, blob in zip(manifest.segments, blobs, strict=True)
        )
        return RestoredState(manifest.num_kv_tokens, slices)

    def _request(self, job: Job, history: _History) -> Request:
        manifest = history.manifest
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
        )

    async def _finish(
        self, job: Job, request: Request, history: _History, finished: Finished, last_token_s: float
    ) -> Done:
        outcome, save_ms = None, 0.0
        if job.session is not None and finished.state is not None:
            started_s = time.monotonic()
            outcome = await self._save(job, job.session, request, history, finished, finished.state)
            save_ms = (time.monotonic() - started_s) * 1e3
        admitted_s = finished.admitted_s or finished.arrival_s
        num_tokens = finished.num_computed_tokens
        return Done(
            reason=finished.reason,
            text=finished.text,
            num_generated_tokens=len(finished.token_ids) - request.prompt_stop,
            num_restored_tokens=finished.num_restored_tokens,
            queue_ms=(admitted_s - finished.arrival_s) * 1e3,
            restore_ms=history.restore_ms,
            save_ms=save_ms,
            first_token_s=finished.first_token_s or last_token_s,
            last_token_s=last_token_s,
            resident_bytes=finished.resident_blocks * self._bytes_per_block,
            peak_bytes=finished.peak_blocks * self._bytes_per_block,
            full_attention_bytes=num_tokens * self.shape.num_layers * self.bytes_per_token_layer,
            session=outcome,
        )

    async def _save(
        self, job: Job, session: SessionUse, request: Request, history: _History, finished: Finished, state: SavedState
    ) -> SessionOutcome:
        """Save the turn: new segments first, the manifest last. What cannot be saved is said, not raised."""
        old = history.manifest
        old_refs = {} if history.restored is None or old is None else {ref.key: ref for ref in old.segments}
        new_refs, blobs = await asyncio.to_thread(_encode, state)
        refs = tuple(new_refs.get(key) or old_refs[key] for key in state.keys)
        now = time.time()
        turns = (*request.turns[:-1], replace(request.turns[-1], stop=len(finished.token_ids)))
        manifest = Manifest(
            session_id=session.session_id,
            version=(old.version if old else 0) + 1,
            token_ids=finished.token_ids,
            turns=turns,
            recipe=job.recipe,
            recipe_name=job.recipe_name,
            model_fingerprint=self.model_fingerprint,
            kv_format="raw",
            num_kv_tokens=state.num_tokens,
            segments=refs,
            created_at_s=old.created_at_s if old else now,
            updated_at_s=now,
            expires_at_s=now + self._session_ttl_s,
        )
        num_bytes = sum(len(blob) for blob in blobs.values())
        try:
            await self._store.save(session.tenant, manifest, blobs, manifest.version - 1)
        except (StoreUnavailable, StaleSession, SessionCorrupt) as exc:
            logger.warning("session %s: turn not saved: %s", session.session_id, exc)
            return SessionOutcome(manifest.version - 1, False, str(exc), history.how, 0)
        return SessionOutcome(manifest.version, True, "", history.how, num_bytes)


def _encode(state: SavedState) -> tuple[dict[object, SegmentRef], dict[str, memoryview | bytes]]:
    refs: dict[object, SegmentRef] = {}
    blobs: dict[str, memoryview | bytes] = {}
    for part in state.slices:
        blob = encode_slice(part)
        name = segment_id(blob)
        refs[part.key] = SegmentRef(part.key, name, len(blob))
        blobs[name] = blob
    return refs, blobs


def _raise_if_unfinished(finished: Finished) -> None:
    if finished.reason is FinishReason.CANCELLED:
        raise RequestCancelled("the request was cancelled")
    if finished.reason is FinishReason.DEADLINE:
        raise DeadlineExceeded("the request's deadline passed")
