"""Sessions and prefixes in Redis: the store that is used, by one process or by many.

What is saved becomes visible in one atomic step, its commit, after all its segments are there. Segments that nothing
names, left by a writer that died or came too late, go by their time to live. `redis_keys` says what is kept where.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Self, cast

from services.errors import SessionBusy, SessionCorrupt, SessionExpired, SessionNotFound, StaleSession
from services.sessions import redis_scripts
from services.sessions.codec import decode_manifest, encode_manifest
from services.sessions.redis_connection import Client, RedisConnection, Script
from services.sessions.redis_keys import TenantKeys, checked
from services.sessions.redis_prefixes import RedisPrefixes
from services.sessions.redis_quotas import RedisQuotas
from services.sessions.redis_segments import MAX_COMMITS, Commit, RedisSegments
from services.sessions.redis_url import connect
from services.sessions.store import Manifest, SavedPrefix, SegmentRef
from swaa_runtime.errors import IntegrityError, InvalidRequest

FENCE_TTL_MS = 24 * 3600 * 1000
"""How long a fence is remembered after its lease was last taken or renewed: no writer is slower than this."""

QUOTA_TIMEOUT_S = 1.0
"""How long a request waits to learn whether its quota has room: everybody waits so long while Redis is silent."""

_LOG = logging.getLogger(__name__)


class RedisSessionStore:
    """The protocols `SessionStore` and `PrefixStore` on Redis. Safe for concurrent use within one event loop.

    The store sets `updated_at_s` and `expires_at_s` of what is saved. An expired session's manifest is kept for as long
    again, so that reading it says so; its segments are not.

    Every call may be sent again if its answer was lost: the second time it changes nothing.

    Args:
        client: made for this store, which closes it; answers bytes.
        ttl_s: how long a session lives after its last save, in seconds.
        lease_ttl_ms: how long a lease lives after `acquire` or `renew`, in milliseconds.
        prefix: what all keys begin with.
        timeout_s: bound of one round trip, in seconds. A save or a fetch makes one for every batch of segments.
        clock: seconds since the epoch.
        quota_bytes: what a tenant may store, that is bytes of segments, each once, and of manifests and prefixes. When
            a commit needs the room, prefixes go first; what still does not fit is refused. None sets no bound. Calls
            that store something may name another bound, for their tenant.
    """

    def __init__(
        self,
        client: Client,
        ttl_s: float,
        lease_ttl_ms: int = 30_000,
        prefix: str = "swaa",
        timeout_s: float = 10.0,
        clock: Callable[[], float] = time.time,
        quota_bytes: int | None = None,
    ) -> None:
        self._connection = RedisConnection(client, timeout_s)
        self._segments = RedisSegments(self._connection, quota_bytes)
        self._prefixes = RedisPrefixes(self._segments)
        self._ttl_s = ttl_s
        self._lease_ttl_ms = lease_ttl_ms
        self._prefix = prefix
        self._clock = clock

    @classmethod
    def from_url(
        cls,
        url: str,
        ttl_s: float,
        lease_ttl_ms: int = 30_000,
        timeout_s: float = 10.0,
        quota_bytes: int | None = None,
    ) -> Self:
        """A store with a client of its own, connected at its first call.

        Args:
            url: one server, the primary that sentinels name, or a cluster: see `redis_url.FORMS`.
        Raises:
            StoreUnavailable: if the URL cannot be understood; it is not repeated, as it may hold a password.
        """
        return cls(connect(url, timeout_s), ttl_s, lease_ttl_ms, timeout_s=timeout_s, quota_bytes=quota_bytes)

    async def ping(self) -> None:
        """Return if the store answers. Raises StoreUnavailable."""
        await self._connection.ping()

    async def close(self) -> None:
        """Close all connections."""
        await self._connection.close()

    def quotas(self, timeout_s: float = QUOTA_TIMEOUT_S) -> RedisQuotas:
        """Counters of what tenants use, in the same place, over the same connections."""
        return RedisQuotas(RedisConnection(self._connection.client, timeout_s), self._prefix)

    async def usage(self, tenant: str) -> int:
        """Bytes that the tenant stores, as its quota counts them."""
        keys = self._keys(tenant)
        return int(await self._run(redis_scripts.USAGE, [keys.ledger], [keys.root]))

    async def get(self, tenant: str, session_id: str) -> Manifest:
        """Read a manifest. Raises SessionNotFound, SessionExpired or SessionCorrupt."""
        key = self._keys(tenant).session(session_id)
        async with self._connection.round_trip():
            fields = self._connection.client.hmget(key, ["version", "data"])
            version, data = await cast(Awaitable[list[Any]], fields)
        manifest = _read(session_id, version, data)
        if manifest.expires_at_s <= self._clock():
            when = datetime.fromtimestamp(manifest.expires_at_s, UTC).isoformat(timespec="seconds")
            raise SessionExpired(f"session {session_id!r} expired at {when}")
        return manifest

    async def list_sessions(self, tenant: str, limit: int) -> list[Manifest]:
        """Up to `limit` live sessions, most recently updated first; what cannot be read is left out."""
        keys = self._keys(tenant)
        if limit < 1:
            raise InvalidRequest("limit", limit, "must be at least 1")
        found: list[Manifest] = []
        dead: list[str] = []
        start = 0
        while len(found) < limit and (ids := await self._indexed(keys, start, limit - len(found))):
            for session_id in ids:
                try:
                    found.append(await self.get(tenant, session_id))
                except SessionNotFound:
                    dead.append(session_id)
                except SessionCorrupt as exc:  # whoever asks for it by name is told; the others still get theirs
                    _LOG.warning("left out of a list: %s", exc)
            start += len(ids)
        if dead:
            seen = [keys.index, *(keys.session(session_id) for session_id in dead)]
            await self._run(redis_scripts.FORGET_DEAD, seen, [int(self._clock() * 1000), *dead])
        return found

    async def fetch(self, tenant: str, refs: Sequence[SegmentRef]) -> list[bytes]:
        """Read segments, checked against their digests. Raises SessionCorrupt if one is missing or wrong."""
        return await self._segments.fetch(self._keys(tenant), refs)

    async def save(
        self,
        tenant: str,
        manifest: Manifest,
        segments: Mapping[str, memoryview | bytes],
        expected_version: int,
        fence: int | None = None,
        quota_bytes: int | None = None,
    ) -> None:
        """Write new segments, then the manifest, if the stored version still is `expected_version` (0: none).

        Args:
            segments: bytes by `codec.segment_id`. At least those that are not stored yet; others are not sent.
            fence: what `acquire` answered; None writes without a lease.

        Raises:
            StaleSession: the stored version is another, or somebody else has taken the lease since `fence`.
            QuotaExceeded: it does not fit into the tenant's quota.
            SegmentsMissing: the manifest names segments that are neither stored nor given.
                Each leaves the stored session as it was.
        """
        if manifest.version != expected_version + 1:
            raise IntegrityError(f"version {manifest.version} cannot follow version {expected_version}")
        now_s = self._clock()
        stamped = replace(manifest, updated_at_s=now_s, expires_at_s=now_s + self._ttl_s)
        keys = self._keys(tenant)
        commit = self._commit_of(keys, stamped, expected_version, fence, quota_bytes)
        _raise_if_stale(stamped.session_id, expected_version, await self._segments.save(keys, commit, segments))

    async def fork(self, tenant: str, session_id: str, new_session_id: str, quota_bytes: int | None = None) -> Manifest:
        """Copy a session under a new id, as version 1 of it; segments are shared.

        Raises:
            SessionNotFound, SessionExpired, SessionCorrupt: of the session that is copied.
            StaleSession: there is a session of the new id.
            QuotaExceeded: the new manifest does not fit into the tenant's quota.
        """
        keys = self._keys(tenant)
        checked("session", new_session_id)
        answer: list[bytes] = []
        for _ in range(MAX_COMMITS):  # a turn saved or a deletion in between may take segments away: look again
            source = await self.get(tenant, session_id)
            now_s = self._clock()
            copy = replace(
                source,
                session_id=new_session_id,
                version=1,
                created_at_s=now_s,
                updated_at_s=now_s,
                expires_at_s=now_s + self._ttl_s,
                idempotency_key="",
            )
            commit = self._commit_of(keys, copy, expected_version=0, quota_bytes=quota_bytes)
            answer = await self._segments.commit(keys, commit)
            if answer[0] != b"missing":
                _raise_if_stale(new_session_id, 0, answer)
                return copy
        raise SessionCorrupt(f"session {session_id!r}: segment {answer[1].decode()} is missing")

    async def delete(self, tenant: str, session_id: str) -> None:
        """Forget a session, and its segments unless others use them. Raises SessionNotFound."""
        keys = self._keys(tenant)
        declared = [keys.session(session_id), keys.index]
        if not await self._run(redis_scripts.DELETE_SESSION, declared, [keys.root, session_id]):
            raise SessionNotFound(f"no session {session_id!r}")

    async def acquire(self, tenant: str, session_id: str, owner: str) -> int:
        """Take the session's lease for `owner`, for as long as `renew` is called. Raises SessionBusy.

        Returns the fence: a number that grows each time the lease changes hands, to be shown to `save`.
        """
        keys = self._keys(tenant)
        fence_ttl_ms = max(FENCE_TTL_MS, self._lease_ttl_ms)
        fence = await self._run(
            redis_scripts.LEASE,
            [keys.lease(session_id), keys.fence(session_id)],
            [owner, self._lease_ttl_ms, fence_ttl_ms],
        )
        if not fence:
            raise SessionBusy(f"session {session_id!r} is in use by another request")
        return int(fence)

    async def renew(self, tenant: str, session_id: str, owner: str) -> None:
        """Prolong the lease, or take it again if it ran out and nobody has it. Raises SessionBusy if somebody has."""
        await self.acquire(tenant, session_id, owner)

    async def release(self, tenant: str, session_id: str, owner: str) -> None:
        """Give the lease back, if `owner` still has it."""
        await self._run(redis_scripts.RELEASE, [self._keys(tenant).lease(session_id)], [owner])

    async def find_prefix(self, tenant: str, prefix_ids: Sequence[str]) -> SavedPrefix | None:
        """The first of these that is stored, if any; finding it begins its time to live anew."""
        return await self._prefixes.find(self._keys(tenant), prefix_ids)

    async def save_prefix(
        self,
        tenant: str,
        prefix: SavedPrefix,
        segments: Mapping[str, memoryview | bytes],
        ttl_s: float,
        quota_bytes: int | None = None,
    ) -> None:
        """Write new segments, then the prefix, to live `ttl_s` seconds after it was last found.

        Raises QuotaExceeded, SegmentsMissing as `save` does.
        """
        await self._prefixes.save(self._keys(tenant), prefix, segments, ttl_s, quota_bytes)

    async def delete_prefixes(self, tenant: str, prefix_ids: Sequence[str]) -> None:
        """Forget prefixes, and their segments unless others use them. Unknown ones are no error."""
        await self._prefixes.delete(self._keys(tenant), prefix_ids)

    async def _indexed(self, keys: TenantKeys, start: int, count: int) -> list[str]:
        async with self._connection.round_trip():
            page = await self._connection.client.zrevrange(keys.index, start, start + count - 1)
        return [cast(bytes, member).decode() for member in page]

    def _commit_of(
        self,
        keys: TenantKeys,
        manifest: Manifest,
        expected_version: int,
        fence: int | None = None,
        quota_bytes: int | None = None,
    ) -> Commit:
        session_id = manifest.session_id
        return Commit(
            script=Script(redis_scripts.COMMIT_SESSION),
            name=f"session:{session_id}",
            refs=manifest.segments,
            data=encode_manifest(manifest),
            ttl_s=2 * self._ttl_s,
            use_s=self._ttl_s,
            quota_bytes=quota_bytes,
            keys=[keys.session(session_id), keys.index, keys.fence(session_id)],
            args=[
                session_id,
                expected_version,
                manifest.version,
                int(manifest.updated_at_s * 1000),
                int(manifest.expires_at_s * 1000),
                -1 if fence is None else fence,
            ],
        )

    async def _run(self, script: str, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        return await self._connection.run(Script(script), keys, args)

    def _keys(self, tenant: str) -> TenantKeys:
        return TenantKeys.of(self._prefix, tenant)


def _raise_if_stale(session_id: str, expected_version: int, answer: Sequence[bytes]) -> None:
    if answer[0] == b"stale":
        raise StaleSession(f"session {session_id!r} is at version {int(answer[1])}, not {expected_version}")
    if answer[0] == b"fenced":
        raise StaleSession(f"session {session_id!r}: somebody else took its lease")


def _read(session_id: str, version: bytes | None, data: bytes | None) -> Manifest:
    if version is None or data is None:
        raise SessionNotFound(f"no session {session_id!r}")
    try:
        manifest = decode_manifest(data)
    except SessionCorrupt as exc:
        raise SessionCorrupt(f"session {session_id!r}: {exc}") from exc
    if manifest.session_id != session_id or str(manifest.version).encode() != version:
        raise SessionCorrupt(f"session {session_id!r}: its manifest is of another session or version")
    return manifest
