"""Sessions and prefixes in dicts, for tests of what uses a store; `test_store_contract` holds it to what Redis does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from services.errors import (
    QuotaExceeded,
    SegmentsMissing,
    SessionBusy,
    SessionCorrupt,
    SessionExpired,
    SessionNotFound,
    StaleSession,
    StoreUnavailable,
)
from services.sessions.codec import encode_manifest
from services.sessions.prefix_codec import encode_prefix
from services.sessions.store import Manifest, SavedPrefix, SegmentRef


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """A prefix, how long it lives unused, until when, and a number that grows with each use."""

    prefix: SavedPrefix
    ttl_s: float
    expires_at_s: float
    used: int


class FakeSessionStore:
    """Sessions and prefixes in memory. Set `available` to False to have every call raise StoreUnavailable.

    Leases do not run out. Segments go with the last session or prefix that names them; drop some from `segments` to
    lose them.
    """

    def __init__(
        self, ttl_s: float = 3600.0, clock: Callable[[], float] = time.time, quota_bytes: int | None = None
    ) -> None:
        self.available = True
        self.manifests: dict[tuple[str, str], Manifest] = {}
        self.prefixes: dict[tuple[str, str], CachedPrefix] = {}
        self.segments: dict[tuple[str, str], bytes] = {}
        self.leases: dict[tuple[str, str], str] = {}
        self.fences: dict[tuple[str, str], tuple[str, int]] = {}
        self._ttl_s = ttl_s
        self._clock = clock
        self._quota_bytes = quota_bytes
        self._uses = 0

    async def usage(self, tenant: str) -> int:
        self._check_available()
        return self._used_bytes(tenant)

    async def get(self, tenant: str, session_id: str) -> Manifest:
        self._check_available()
        manifest = self.manifests.get((tenant, session_id))
        if manifest is None:
            raise SessionNotFound(f"no session {session_id!r}")
        if manifest.expires_at_s <= self._clock():
            raise SessionExpired(f"session {session_id!r} expired")
        return manifest

    async def list_sessions(self, tenant: str, limit: int) -> list[Manifest]:
        self._check_available()
        live = [
            manifest
            for (owner, _), manifest in self.manifests.items()
            if owner == tenant and manifest.expires_at_s > self._clock()
        ]
        return sorted(live, key=lambda manifest: manifest.updated_at_s, reverse=True)[:limit]

    async def fetch(self, tenant: str, refs: Sequence[SegmentRef]) -> list[bytes]:
        self._check_available()
        for ref in refs:
            if (tenant, ref.segment_id) not in self.segments:
                raise SessionCorrupt(f"segment {ref.segment_id} is missing")
        return [self.segments[tenant, ref.segment_id] for ref in refs]

    async def save(
        self,
        tenant: str,
        manifest: Manifest,
        segments: Mapping[str, memoryview | bytes],
        expected_version: int,
        fence: int | None = None,
        quota_bytes: int | None = None,
    ) -> None:
        self._check_available()
        key = (tenant, manifest.session_id)
        stored = self.manifests.get(key)
        version = stored.version if stored else 0
        expired = stored is not None and stored.expires_at_s <= self._clock()
        if version != expected_version and not (expected_version == 0 and expired):
            raise StaleSession(f"session {manifest.session_id!r} is at version {version}, not {expected_version}")
        if fence is not None and key in self.fences and self.fences[key][1] > fence:
            raise StaleSession(f"session {manifest.session_id!r}: somebody else took its lease")
        now_s = self._clock()
        stamped = replace(manifest, updated_at_s=now_s, expires_at_s=now_s + self._ttl_s)
        self._commit(tenant, stamped, segments, quota_bytes)

    async def fork(self, tenant: str, session_id: str, new_session_id: str, quota_bytes: int | None = None) -> Manifest:
        source = await self.get(tenant, session_id)
        copy = replace(source, session_id=new_session_id, version=1, created_at_s=self._clock(), idempotency_key="")
        await self.save(tenant, copy, {}, 0, quota_bytes=quota_bytes)
        return self.manifests[tenant, new_session_id]

    async def delete(self, tenant: str, session_id: str) -> None:
        self._check_available()
        if self.manifests.pop((tenant, session_id), None) is None:
            raise SessionNotFound(f"no session {session_id!r}")
        self._forget_unused(tenant)

    async def acquire(self, tenant: str, session_id: str, owner: str) -> int:
        self._check_available()
        key = (tenant, session_id)
        if self.leases.setdefault(key, owner) != owner:
            raise SessionBusy(f"session {session_id!r} is in use by another request")
        last_owner, fence = self.fences.get(key, ("", 0))
        if last_owner != owner:
            fence += 1
            self.fences[key] = (owner, fence)
        return fence

    async def renew(self, tenant: str, session_id: str, owner: str) -> None:
        await self.acquire(tenant, session_id, owner)

    async def release(self, tenant: str, session_id: str, owner: str) -> None:
        self._check_available()
        if self.leases.get((tenant, session_id)) == owner:
            del self.leases[tenant, session_id]

    async def find_prefix(self, tenant: str, prefix_ids: Sequence[str]) -> SavedPrefix | None:
        self._check_available()
        for prefix_id in prefix_ids:
            cached = self.prefixes.get((tenant, prefix_id))
            if cached is None or cached.expires_at_s <= self._clock():
                continue
            if all((tenant, ref.segment_id) in self.segments for ref in cached.prefix.segments):
                self.prefixes[tenant, prefix_id] = self._cached(cached.prefix, cached.ttl_s)
                return cached.prefix
            await self.delete_prefixes(tenant, [prefix_id])
        return None

    async def save_prefix(
        self,
        tenant: str,
        prefix: SavedPrefix,
        segments: Mapping[str, memoryview | bytes],
        ttl_s: float,
        quota_bytes: int | None = None,
    ) -> None:
        self._check_available()
        self._commit(tenant, self._cached(prefix, ttl_s), segments, quota_bytes)

    async def delete_prefixes(self, tenant: str, prefix_ids: Sequence[str]) -> None:
        self._check_available()
        for prefix_id in prefix_ids:
            self.prefixes.pop((tenant, prefix_id), None)
        self._forget_unused(tenant)

    def _cached(self, prefix: SavedPrefix, ttl_s: float) -> CachedPrefix:
        self._uses += 1
        return CachedPrefix(prefix, ttl_s, self._clock() + ttl_s, self._uses)

    def _commit(
        self,
        tenant: str,
        new: Manifest | CachedPrefix,
        segments: Mapping[str, memoryview | bytes],
        quota_bytes: int | None,
    ) -> None:
        """Make the session or prefix visible, or change nothing: it is tried out, and undone if it does not do."""
        before = dict(self.manifests), dict(self.prefixes), dict(self.segments)
        self.segments.update({(tenant, digest): bytes(data) for digest, data in segments.items()})
        if isinstance(new, Manifest):
            self.manifests[tenant, new.session_id] = new
            refs, kept = new.segments, ""
        else:
            self.prefixes[tenant, new.prefix.prefix_id] = new
            refs, kept = new.prefix.segments, new.prefix.prefix_id
        try:
            if gone := [ref.segment_id for ref in refs if (tenant, ref.segment_id) not in self.segments]:
                raise SegmentsMissing("what is saved", gone)
            self._make_room(tenant, kept, quota_bytes)
        except (SegmentsMissing, QuotaExceeded):
            self.manifests, self.prefixes, self.segments = before
            raise

    def _make_room(self, tenant: str, kept: str, quota_bytes: int | None) -> None:
        self._forget_unused(tenant)
        quota = self._quota_bytes if quota_bytes is None else quota_bytes
        while quota is not None and (used := self._used_bytes(tenant)) > quota:
            mine = [(cached.used, name) for (owner, name), cached in self.prefixes.items() if owner == tenant]
            evictable = [name for _, name in sorted(mine) if name != kept]
            if not evictable:
                raise QuotaExceeded(f"{used} bytes needed; the quota is {quota} bytes")
            del self.prefixes[tenant, evictable[0]]
            self._forget_unused(tenant)

    def _refs(self, tenant: str) -> Iterator[SegmentRef]:
        for (owner, _), manifest in self.manifests.items():
            if owner == tenant:
                yield from manifest.segments
        for (owner, _), cached in self.prefixes.items():
            if owner == tenant:
                yield from cached.prefix.segments

    def _forget_unused(self, tenant: str) -> None:
        used = {ref.segment_id for ref in self._refs(tenant)}
        for owner, digest in list(self.segments):
            if owner == tenant and digest not in used:
                del self.segments[owner, digest]

    def _used_bytes(self, tenant: str) -> int:
        manifests = sum(len(encode_manifest(part)) for (owner, _), part in self.manifests.items() if owner == tenant)
        prefixes = sum(len(encode_prefix(part.prefix)) for (owner, _), part in self.prefixes.items() if owner == tenant)
        segments = sum(len(data) for (owner, _), data in self.segments.items() if owner == tenant)
        return manifests + prefixes + segments

    def _check_available(self) -> None:
        if not self.available:
            raise StoreUnavailable("session store: switched off")
