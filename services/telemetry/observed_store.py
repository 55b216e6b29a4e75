"""A store whose calls are timed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence

from services.errors import StoreUnavailable
from services.sessions.store import Manifest, SavedPrefix, SegmentRef, Store
from services.telemetry.metrics import StoreMetrics


class ObservedStore:
    """A `Store` that is another one, and counts how long its calls take and which of them it did not answer."""

    def __init__(self, store: Store, metrics: StoreMetrics) -> None:
        self._store = store
        self._metrics = metrics

    async def get(self, tenant: str, session_id: str) -> Manifest:
        """See `SessionStore`."""
        with self._timed("get"):
            return await self._store.get(tenant, session_id)

    async def list_sessions(self, tenant: str, limit: int) -> list[Manifest]:
        """See `SessionStore`."""
        with self._timed("list_sessions"):
            return await self._store.list_sessions(tenant, limit)

    async def fetch(self, tenant: str, refs: Sequence[SegmentRef]) -> list[bytes]:
        """See `SessionStore`."""
        with self._timed("fetch"):
            return await self._store.fetch(tenant, refs)

    async def save(
        self,
        tenant: str,
        manifest: Manifest,
        segments: Mapping[str, memoryview | bytes],
        expected_version: int,
        fence: int | None = None,
        quota_bytes: int | None = None,
    ) -> None:
        """See `SessionStore`."""
        with self._timed("save"):
            await self._store.save(tenant, manifest, segments, expected_version, fence, quota_bytes)

    async def fork(self, tenant: str, session_id: str, new_session_id: str, quota_bytes: int | None = None) -> Manifest:
        """See `SessionStore`."""
        with self._timed("fork"):
            return await self._store.fork(tenant, session_id, new_session_id, quota_bytes)

    async def delete(self, tenant: str, session_id: str) -> None:
        """See `SessionStore`."""
        with self._timed("delete"):
            await self._store.delete(tenant, session_id)

    async def acquire(self, tenant: str, session_id: str, owner: str) -> int:
        """See `SessionStore`."""
        with self._timed("acquire"):
            return await self._store.acquire(tenant, session_id, owner)

    async def renew(self, tenant: str, session_id: str, owner: str) -> None:
        """See `SessionStore`."""
        with self._timed("renew"):
            await self._store.renew(tenant, session_id, owner)

    async def release(self, tenant: str, session_id: str, owner: str) -> None:
        """See `SessionStore`."""
        with self._timed("release"):
            await self._store.release(tenant, session_id, owner)

    async def find_prefix(self, tenant: str, prefix_ids: Sequence[str]) -> SavedPrefix | None:
        """See `PrefixStore`."""
        with self._timed("find_prefix"):
            return await self._store.find_prefix(tenant, prefix_ids)

    async def save_prefix(
        self,
        tenant: str,
        prefix: SavedPrefix,
        segments: Mapping[str, memoryview | bytes],
        ttl_s: float,
        quota_bytes: int | None = None,
    ) -> None:
        """See `PrefixStore`."""
        with self._timed("save_prefix"):
            await self._store.save_prefix(tenant, prefix, segments, ttl_s, quota_bytes)

    async def delete_prefixes(self, tenant: str, prefix_ids: Sequence[str]) -> None:
        """See `PrefixStore`."""
        with self._timed("delete_prefixes"):
            await self._store.delete_prefixes(tenant, prefix_ids)

    @contextlib.contextmanager
    def _timed(self, operation: str) -> Iterator[None]:
        started_s = time.monotonic()
        try:
            yield
        except StoreUnavailable:
            self._metrics.errors.labels(operation).inc()
            raise
        finally:
            self._metrics.duration_s.labels(operation).observe(time.monotonic() - started_s)
