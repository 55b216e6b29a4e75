"""Takes a turn's state to the store: checkpoints while its prompt is prefilled, the session when it has ended.

Everything is encoded and sent in the background: no token waits for it. At most one checkpoint is on its way; the
engine skips those that come meanwhile.

What a turn builds on, another session's prompt or a checkpoint of its own, may be deleted from the store before the
turn is saved. The store says so then, and the engine exports those slices again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

from services.errors import QuotaExceeded, SegmentsMissing, StoreUnavailable
from services.replica.engine_loop import EngineLoop
from services.sessions.batching import batched_by_bytes
from services.sessions.codec import segment_id
from services.sessions.policy import SessionPolicy
from services.sessions.slice_codec import encode_slice
from services.sessions.store import KVFormat, Manifest, SavedPrefix, SegmentRef, Store
from swaa_runtime.kv_cache.slices import KVSlice, SliceKey
from swaa_runtime.outputs import Checkpoint, ExportedState, StateSlices

logger = logging.getLogger(__name__)

EXPORT_BYTES = 16 << 20
"""Of what is exported again at a time, between two steps of the engine."""

MIN_CHECKPOINT_TTL_S = 900.0
"""Checkpoints of a turn that never ended are there for whoever tries it again within this."""


class TurnSaver:
    """Saves what one turn exports. Use as an async context manager; on leaving, what is not finished is given up.

    Args:
        quota_bytes: what the tenant may store; None: what the store bounds every tenant to.
        prefix_ids: ids of the prefix states that the turn goes through, by their number of tokens.
        segments: what of the state is stored already.
    """

    def __init__(
        self,
        engine: EngineLoop,
        request_id: str,
        store: Store,
        tenant: str,
        quota_bytes: int | None,
        policy: SessionPolicy,
        prefix_ids: dict[int, str],
        segments: Iterable[SegmentRef],
    ) -> None:
        self._engine = engine
        self._request_id = request_id
        self._store = store
        self._tenant = tenant
        self._quota_bytes = quota_bytes
        self._policy = policy
        self._prefix_ids = prefix_ids
        self._refs = {ref.key: ref for ref in segments}
        self._blobs: dict[str, memoryview | bytes] = {}
        self._checkpoints: list[int] = []
        self._outputs: asyncio.Queue[StateSlices | Checkpoint | None] = asyncio.Queue()
        self._working: asyncio.Task[None] | None = None
        self.saved_bytes = 0

    async def __aenter__(self) -> TurnSaver:
        self._working = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._working is not None:
            self._working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._working

    def put(self, output: StateSlices | Checkpoint) -> None:
        """Take what the engine has exported."""
        self._outputs.put_nowait(output)

    async def save(self, manifest: Manifest, state: ExportedState | None, fence: int) -> str:
        """Save the session, then drop checkpoints that nobody else is likely to use. Returns why it failed, or "".

        Args:
            manifest: of its tokens alone; state: its KV, if it has any that can be kept.

        Raises StaleSession if somebody else has moved the session on: then this turn is not part of it.
        """
        self._outputs.put_nowait(None)
        if self._working is not None:
            await self._working
        try:
            await self._save_session(manifest, state, fence)
        except (StoreUnavailable, QuotaExceeded) as exc:
            logger.warning("session %s: turn not saved: %s", manifest.session_id, exc)
            return str(exc)
        self.saved_bytes += sum(len(blob) for blob in self._blobs.values())
        if superfluous := [self._prefix_ids[at] for at in self._superfluous()]:
            with contextlib.suppress(StoreUnavailable):  # they go by their time to live
                await self._store.delete_prefixes(self._tenant, superfluous)
        return ""

    async def _save_session(self, manifest: Manifest, state: ExportedState | None, fence: int) -> None:
        """Save it. Slices that the store has lost are exported again; if the engine has, too, only tokens are saved."""
        version, quota_bytes = manifest.version - 1, self._quota_bytes
        while state is not None:
            whole = replace(manifest, num_kv_tokens=state.num_tokens, segments=self._segments(state))
            try:
                await self._store.save(self._tenant, whole, self._blobs, version, fence, quota_bytes)
            except SegmentsMissing as exc:  # fewer each time: what has been exported again is given
                logger.info("%s; exporting again", exc)
                if await self._export_again(self._lost(state, exc)):
                    continue
                logger.warning("session %s: only its tokens are saved: its KV is gone", manifest.session_id)
                break
            return
        self._blobs.clear()
        await self._store.save(self._tenant, manifest, {}, version, fence, quota_bytes)

    async def _export_again(self, keys: Sequence[SliceKey]) -> bool:
        """Encode slices of the finished turn's state once more. False if it is not in KV memory any more."""
        for batch in batched_by_bytes(((key, self._refs[key].num_bytes) for key in keys), EXPORT_BYTES):
            slices = await self._engine.export_parked(self._request_id, batch)
            if slices is None:
                return False
            await self._encode(slices)
        return True

    def _segments(self, state: ExportedState) -> tuple[SegmentRef, ...]:
        return tuple(self._refs[key] for key in state.keys)

    def _lost(self, state: ExportedState, missing: SegmentsMissing) -> list[SliceKey]:
        return [key for key in state.keys if self._refs[key].segment_id in missing.segment_ids]

    async def _encode(self, slices: Iterable[KVSlice]) -> None:
        refs, blobs = await asyncio.to_thread(_encoded, slices, self._policy.kv_format)
        self._refs |= refs
        self._blobs |= blobs

    async def _work(self) -> None:
        while (output := await self._outputs.get()) is not None:
            if isinstance(output, StateSlices):
                await self._encode(output.slices)
            else:
                await self._save_checkpoint(output.state)
                self._blobs.clear()  # what was not saved is exported again when it is needed

    async def _save_checkpoint(self, state: ExportedState) -> None:
        """Save it, and tell the engine what the store has now, or has lost."""
        prefix = SavedPrefix(self._prefix_ids[state.num_tokens], state.num_tokens, self._segments(state))
        saved, lost = list[SliceKey](), list[SliceKey]()
        ttl_s = max(MIN_CHECKPOINT_TTL_S, self._policy.prefix_ttl_s)
        try:
            await self._store.save_prefix(self._tenant, prefix, self._blobs, ttl_s, self._quota_bytes)
        except (StoreUnavailable, SegmentsMissing, QuotaExceeded) as exc:
            logger.warning("checkpoint after %d tokens not saved: %s", state.num_tokens, exc)
            if isinstance(exc, SegmentsMissing):
                lost = self._lost(state, exc)
        else:
            saved = list(state.keys)
            self._checkpoints.append(state.num_tokens)
            self.saved_bytes += sum(len(blob) for blob in self._blobs.values())
        self._engine.confirm_saved(self._request_id, saved, lost)

    def _superfluous(self) -> list[int]:
        """Checkpoints not worth keeping: all but the last and those after 1, 2, 4, 8 … times `checkpoint_tokens`.

        Prompts that share their start share a system prompt or a document: few lengths, known only when they come.
        """
        if not self._policy.prefix_ttl_s:
            return self._checkpoints
        pieces = {at: at // self._policy.checkpoint_tokens for at in self._checkpoints}
        return [at for at, count in pieces.items() if count & (count - 1) and at != max(pieces)]


def _encoded(
    slices: Iterable[KVSlice], kv_format: KVFormat
) -> tuple[dict[SliceKey, SegmentRef], dict[str, memoryview | bytes]]:
    refs: dict[SliceKey, SegmentRef] = {}
    blobs: dict[str, memoryview | bytes] = {}
    for part in slices:
        blob = encode_slice(part, kv_format)
        name = segment_id(blob)
        refs[part.key] = SegmentRef(part.key, name, len(blob))
        blobs[name] = blob
    return refs, blobs
