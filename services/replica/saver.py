"""Takes a turn's state to the store: checkpoints while its prompt is prefilled, the session when it has ended.

Everything is encoded and sent in the background: no token waits for it. At most one checkpoint is on its way; the
engine skips those that come meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable

from services.errors import QuotaExceeded, SessionCorrupt, StoreUnavailable
from services.sessions.codec import segment_id
from services.sessions.policy import SessionPolicy
from services.sessions.slice_codec import encode_slice
from services.sessions.store import KVFormat, Manifest, SavedPrefix, SegmentRef, Store
from swaa_runtime.kv_cache.slices import KVSlice, SliceKey
from swaa_runtime.outputs import Checkpoint, ExportedState, StateSlices

logger = logging.getLogger(__name__)

MIN_CHECKPOINT_TTL_S = 900.0
"""Checkpoints of a turn that never ended are there for whoever tries it again within this."""


class TurnSaver:
    """Saves what one turn exports. Use as an async context manager; on leaving, what is not finished is given up.

    Args:
        quota_bytes: what the tenant may store; None: what the store bounds every tenant to.
        prefix_ids: ids of the prefix states that the turn goes through, by their number of tokens.
        segments: what of the state is stored already.
        confirm: is told which slices a checkpoint has saved (none if it failed).
    """

    def __init__(
        self,
        store: Store,
        tenant: str,
        quota_bytes: int | None,
        policy: SessionPolicy,
        prefix_ids: dict[int, str],
        segments: Iterable[SegmentRef],
        confirm: Callable[[Collection[SliceKey]], None],
    ) -> None:
        self._store = store
        self._tenant = tenant
        self._quota_bytes = quota_bytes
        self._policy = policy
        self._prefix_ids = prefix_ids
        self._refs = {ref.key: ref for ref in segments}
        self._confirm = confirm
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

    async def segments(self, state: ExportedState) -> tuple[SegmentRef, ...]:
        """The segments of a state, when all that was put has been encoded."""
        self._outputs.put_nowait(None)
        if self._working is not None:
            await self._working
        return tuple(self._refs[key] for key in state.keys)

    async def save(self, manifest: Manifest, fence: int) -> str:
        """Save the session, then drop checkpoints that nobody else is likely to use. Returns why it failed, or "".

        Raises StaleSession if somebody else has moved the session on: then this turn is not part of it.
        """
        try:
            version, quota_bytes = manifest.version - 1, self._quota_bytes
            await self._store.save(self._tenant, manifest, self._blobs, version, fence, quota_bytes)
        except (StoreUnavailable, SessionCorrupt, QuotaExceeded) as exc:
            logger.warning("session %s: turn not saved: %s", manifest.session_id, exc)
            return str(exc)
        self.saved_bytes += sum(len(blob) for blob in self._blobs.values())
        if superfluous := [self._prefix_ids[at] for at in self._superfluous()]:
            with contextlib.suppress(StoreUnavailable):  # they go by their time to live
                await self._store.delete_prefixes(self._tenant, superfluous)
        return ""

    async def _work(self) -> None:
        while (output := await self._outputs.get()) is not None:
            if isinstance(output, StateSlices):
                refs, blobs = await asyncio.to_thread(_encode, output.slices, self._policy.kv_format)
                self._refs |= refs
                self._blobs |= blobs
            else:
                saved = await self._save_checkpoint(output.state)
                self._confirm(output.state.keys if saved else ())
                self._blobs.clear()  # what was not saved is exported again when it is needed

    async def _save_checkpoint(self, state: ExportedState) -> bool:
        prefix = SavedPrefix(
            self._prefix_ids[state.num_tokens], state.num_tokens, tuple(self._refs[key] for key in state.keys)
        )
        ttl_s = max(MIN_CHECKPOINT_TTL_S, self._policy.prefix_ttl_s)
        try:
            await self._store.save_prefix(self._tenant, prefix, self._blobs, ttl_s, self._quota_bytes)
        except (StoreUnavailable, SessionCorrupt, QuotaExceeded) as exc:
            logger.warning("checkpoint after %d tokens not saved: %s", state.num_tokens, exc)
            return False
        self._checkpoints.append(state.num_tokens)
        self.saved_bytes += sum(len(blob) for blob in self._blobs.values())
        return True

    def _superfluous(self) -> list[int]:
        """Checkpoints not worth keeping: all but the last and those after 1, 2, 4, 8 … times `checkpoint_tokens`.

        Prompts that share their start share a system prompt or a document: few lengths, known only when they come.
        """
        if not self._policy.prefix_ttl_s:
            return self._checkpoints
        pieces = {at: at // self._policy.checkpoint_tokens for at in self._checkpoints}
        return [at for at, count in pieces.items() if count & (count - 1) and at != max(pieces)]


def _encode(
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
