"""Brings saved KV into a running engine: fetches a batch while the one before is checked, decoded and placed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from services.replica.engine_loop import EngineLoop
from services.sessions.batching import batched_by_bytes
from services.sessions.slice_codec import decode_slice
from services.sessions.store import KVFormat, SegmentRef, SessionStore
from swaa_runtime.kv_cache.slices import KVSlice
from swaa_runtime.model.loader import torch_dtype
from swaa_runtime.shape import ModelShape

BATCH_BYTES = 16 << 20
"""Of segments, per fetch: large enough for the store's full rate, small enough to overlap."""


class Restorer:
    """Fetches states of one model from the store into one engine."""

    def __init__(self, engine: EngineLoop, store: SessionStore, shape: ModelShape) -> None:
        self._engine = engine
        self._store = store
        self._shape = shape

    async def feed(self, tenant: str, request_id: str, segments: Sequence[SegmentRef], kv_format: KVFormat) -> None:
        """Bring all segments into a request that waits for them.

        Raises:
            SessionCorrupt: if one is missing or is not what was saved.
            StoreUnavailable: if the store does not answer. Some may have been placed by then.
        """
        batches = batched_by_bytes(((ref, ref.num_bytes) for ref in segments), BATCH_BYTES)
        batch = next(batches, None)
        fetching: asyncio.Task[list[bytes]] | None = None
        try:
            while batch is not None:
                blobs = await (fetching or self._store.fetch(tenant, batch))
                following = next(batches, None)
                # Dropped here: what is not held any more is what the next replies are read into.
                fetching = None if following is None else asyncio.create_task(self._store.fetch(tenant, following))
                slices = await asyncio.to_thread(self._decode, batch, blobs, kv_format)
                await self._engine.place(request_id, slices)
                batch = following
        finally:
            if fetching is not None:
                fetching.cancel()

    def _decode(self, refs: Sequence[SegmentRef], blobs: Sequence[bytes], kv_format: KVFormat) -> list[KVSlice]:
        shape = self._shape
        return [
            decode_slice(ref, blob, shape.num_kv_heads, shape.head_dim, torch_dtype(shape.dtype), kv_format)
            for ref, blob in zip(refs, blobs, strict=True)
        ]
