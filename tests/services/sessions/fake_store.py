"""A `SessionStore` in a dict, for tests of what uses a store; `test_store_contract` holds it to what Redis does."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from services.errors import SessionBusy, SessionCorrupt, SessionExpired, SessionNotFound, StaleSession, StoreUnavailable
from services.sessions.store import Manifest, SegmentRef


class FakeSessionStore:
    """Sessions in memory. Set `available` to False to have every call raise StoreUnavailable.

    Leases do not run out, and segments stay until the store goes: drop some from `segments` to lose them.
    """

    def __init__(self, ttl_s: float = 3600.0, clock: Callable[[], float] = time.time) -> None:
        self.available = True
        self.manifests: dict[tuple[str, str], Manifest] = {}
        self.segments: dict[tuple[str, str], bytes] = {}
        self.leases: dict[tuple[str, str], str] = {}
        self._ttl_s = ttl_s
        self._clock = clock

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
    ) -> None:
        self._check_available()
        stored = self.manifests.get((tenant, manifest.session_id))
        version = stored.version if stored else 0
        expired = stored is not None and stored.expires_at_s <= self._clock()
        if version != expected_version and not (expected_version == 0 and expired):
            raise StaleSession(f"session {manifest.session_id!r} is at version {version}, not {expected_version}")
        for ref in manifest.segments:
            if ref.segment_id not in segments and (tenant, ref.segment_id) not in self.segments:
                raise SessionCorrupt(f"segment {ref.segment_id} is neither stored nor given")
        self.segments.update({(tenant, digest): bytes(data) for digest, data in segments.items()})
        now_s = self._clock()
        self.manifests[tenant, manifest.session_id] = replace(
            manifest, updated_at_s=now_s, expires_at_s=now_s + self._ttl_s
        )

    async def fork(self, tenant: str, session_id: str, new_session_id: str) -> Manifest:
        source = await self.get(tenant, session_id)
        copy = replace(source, session_id=new_session_id, version=1, created_at_s=self._clock())
        await self.save(tenant, copy, {}, 0)
        return self.manifests[tenant, new_session_id]

    async def delete(self, tenant: str, session_id: str) -> None:
        self._check_available()
        if self.manifests.pop((tenant, session_id), None) is None:
            raise SessionNotFound(f"no session {session_id!r}")

    async def acquire(self, tenant: str, session_id: str, owner: str) -> int:
        self._check_available()
        if self.leases.setdefault((tenant, session_id), owner) != owner:
            raise SessionBusy(f"session {session_id!r} is in use by another request")
        return 1

    async def renew(self, tenant: str, session_id: str, owner: str) -> None:
        await self.acquire(tenant, session_id, owner)

    async def release(self, tenant: str, session_id: str, owner: str) -> None:
        self._check_available()
        if self.leases.get((tenant, session_id)) == owner:
            del self.leases[tenant, session_id]

    def _check_available(self) -> None:
        if not self.available:
            raise StoreUnavailable("session store: switched off")
