"""Sessions in Redis: the `SessionStore` that is used, by one process or by many.

Keys, all of one tenant on one node (the braces are Redis's hash tag):

    swaa:{tenant}:session:<session>   hash: version, expires_ms, segments, data (see `redis_scripts`)
    swaa:{tenant}:segment:<digest>    bytes of one segment: immutable, shared by all sessions that have the same
    swaa:{tenant}:refs:<digest>       set of the sessions that use the segment
    swaa:{tenant}:lease:<session>     who uses the session now
    swaa:{tenant}:index               sorted set of sessions by the time of their last save

What is saved becomes visible in one atomic step, `COMMIT`, after all its segments are there. Segments that no manifest
names, left by a writer that died or came too late, go by their time to live.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Self, cast

from redis.asyncio import Redis

from services.errors import (
    SessionBusy,
    SessionCorrupt,
    SessionExpired,
    SessionNotFound,
    StaleSession,
    StoreUnavailable,
)
from services.sessions import redis_scripts
from services.sessions.codec import decode_manifest, encode_manifest, segment_id
from services.sessions.redis_connection import connect, round_trip
from services.sessions.store import Manifest, SegmentRef
from swaa_runtime.errors import IntegrityError, InvalidRequest

BATCH_BYTES = 16 << 20
"""Segments travel in batches of about this size: few round trips, bounded memory, and no long silence on a socket."""

MARGIN_S = 600.0
"""Segments outlive their session by this, so that whoever has just read a manifest can fetch what it names."""

UPLOAD_TTL_S = 900.0
"""How long a segment waits for the manifest that names it."""

MAX_COMMITS = 4
"""Commits of one save: one says what is missing, one succeeds, the others are for segments deleted in between."""

_LOG = logging.getLogger(__name__)
_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,64}")


class RedisSessionStore:
    """The `SessionStore` protocol on Redis. Safe for concurrent use within one event loop.

    The store sets `updated_at_s` and `expires_at_s` of what is saved. An expired session's manifest is kept for as long
    again, so that reading it says so; its segments are not.

    Args:
        client: made for this store, which closes it; answers bytes.
        ttl_s: how long a session lives after its last save, in seconds.
        lease_ttl_ms: how long a lease lives after `acquire` or `renew`, in milliseconds.
        prefix: what all keys begin with.
        timeout_s: bound of one round trip, in seconds. A save or a fetch makes one for every `BATCH_BYTES`.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        client: Redis,
        ttl_s: float,
        lease_ttl_ms: int = 30_000,
        prefix: str = "swaa",
        timeout_s: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._ttl_s = ttl_s
        self._lease_ttl_ms = lease_ttl_ms
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._clock = clock
        self._commit_script = client.register_script(redis_scripts.COMMIT)
        self._delete_script = client.register_script(redis_scripts.DELETE)
        self._forget_script = client.register_script(redis_scripts.FORGET_DEAD)
        self._lease_script = client.register_script(redis_scripts.LEASE)
        self._release_script = client.register_script(redis_scripts.RELEASE)

    @classmethod
    def from_url(cls, url: str, ttl_s: float, lease_ttl_ms: int = 30_000, timeout_s: float = 10.0) -> Self:
        """A store with a client of its own, connected at its first call.

        Args:
            url: `redis://`, `rediss://` or `unix://`, see `redis.asyncio.from_url`.
        Raises:
            StoreUnavailable: if the URL cannot be understood; it is not repeated, as it may hold a password.
        """
        return cls(connect(url, timeout_s), ttl_s, lease_ttl_ms, timeout_s=timeout_s)

    async def ping(self) -> None:
        """Return if the store answers. Raises StoreUnavailable."""
        async with self._round_trip():
            await cast(Awaitable[Any], self._client.ping())

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def get(self, tenant: str, session_id: str) -> Manifest:
        """Read a manifest. Raises SessionNotFound, SessionExpired or SessionCorrupt."""
        key = self._root(tenant) + "session:" + _checked("session", session_id)
        async with self._round_trip():
            version, data = await cast(Awaitable[list[Any]], self._client.hmget(key, ["version", "data"]))
        manifest = _read(session_id, version, data)
        if manifest.expires_at_s <= self._clock():
            when = datetime.fromtimestamp(manifest.expires_at_s, UTC).isoformat(timespec="seconds")
            raise SessionExpired(f"session {session_id!r} expired at {when}")
        return manifest

    async def list_sessions(self, tenant: str, limit: int) -> list[Manifest]:
        """Up to `limit` live sessions, most recently updated first; what cannot be read is left out."""
        root = self._root(tenant)
        if limit < 1:
            raise InvalidRequest("limit", limit, "must be at least 1")
        found: list[Manifest] = []
        dead: list[str] = []
        start = 0
        while len(found) < limit and (ids := await self._indexed(root, start, limit - len(found))):
            for session_id in ids:
                try:
                    found.append(await self.get(tenant, session_id))
                except SessionNotFound:
                    dead.append(session_id)
                except SessionCorrupt as exc:  # whoever asks for it by name is told; the others still get theirs
                    _LOG.warning("left out of a list: %s", exc)
            start += len(ids)
        if dead:
            keys = [root + "index", *(root + "session:" + session_id for session_id in dead)]
            await self._run(self._forget_script, keys, [int(self._clock() * 1000), *dead])
        return found

    async def fetch(self, tenant: str, refs: Sequence[SegmentRef]) -> list[bytes]:
        """Read segments, checked against their digests. Raises SessionCorrupt if one is missing or wrong."""
        root = self._root(tenant)
        sizes = {ref.segment_id: ref.num_bytes for ref in refs}
        found: dict[str, bytes] = {}
        for batch in _batches(sizes):
            async with self._round_trip(), self._client.pipeline(transaction=False) as pipe:
                for digest in batch:
                    pipe.get(root + "segment:" + digest)
                blobs = dict(zip(batch, await pipe.execute(), strict=True))
            if wrong := await asyncio.to_thread(_first_wrong, sizes, blobs):
                async with self._round_trip():  # of no use to anybody, and in the way of who would save it again
                    await self._client.unlink(root + "segment:" + wrong)
                raise SessionCorrupt(f"segment {wrong} is missing or is not what was saved")
            found.update(blobs)
        return [found[ref.segment_id] for ref in refs]

    async def save(
        self, tenant: str, manifest: Manifest, segments: Mapping[str, memoryview | bytes], expected_version: int
    ) -> None:
        """Write new segments, then the manifest, if the stored version still is `expected_version` (0: none).

        Args:
            segments: bytes by `codec.segment_id`. At least those that are not stored yet; others are not sent.

        Raises:
            StaleSession: the stored version is another; the stored session is as it was.
            SessionCorrupt: the manifest names a segment that is neither stored nor given; nothing was changed.
        """
        if manifest.version != expected_version + 1:
            raise IntegrityError(f"version {manifest.version} cannot follow version {expected_version}")
        sizes = {ref.segment_id: ref.num_bytes for ref in manifest.segments}
        for digest, data in segments.items():
            if sizes.get(digest) != len(data):
                raise IntegrityError(f"segment {digest} of {len(data)} bytes is not as the manifest says")
        now_s = self._clock()
        stamped = replace(manifest, updated_at_s=now_s, expires_at_s=now_s + self._ttl_s)
        for _ in range(MAX_COMMITS):
            missing = await self._commit(tenant, stamped, expected_version)
            if not missing:
                return
            await self._upload(tenant, stamped.session_id, missing, segments)
        raise StoreUnavailable(f"session {manifest.session_id!r}: its segments vanish from the store while it is saved")

    async def fork(self, tenant: str, session_id: str, new_session_id: str) -> Manifest:
        """Copy a session under a new id, as version 1 of it; segments are shared.

        Raises:
            SessionNotFound, SessionExpired, SessionCorrupt: of the session that is copied.
            StaleSession: there is a session of the new id.
        """
        _checked("session", new_session_id)
        missing: list[str] = []
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
            )
            missing = await self._commit(tenant, copy, expected_version=0)
            if not missing:
                return copy
        raise SessionCorrupt(f"session {session_id!r}: segment {missing[0]} is missing")

    async def delete(self, tenant: str, session_id: str) -> None:
        """Forget a session, and its segments unless a fork still uses them. Raises SessionNotFound."""
        root = self._root(tenant)
        keys = [root + "session:" + _checked("session", session_id), root + "index"]
        if not await self._run(self._delete_script, keys, [root, session_id]):
            raise SessionNotFound(f"no session {session_id!r}")

    async def acquire(self, tenant: str, session_id: str, owner: str) -> None:
        """Take the session's lease for `owner`, for as long as `renew` is called. Raises SessionBusy."""
        key = self._root(tenant) + "lease:" + _checked("session", session_id)
        if not await self._run(self._lease_script, [key], [owner, self._lease_ttl_ms]):
            raise SessionBusy(f"session {session_id!r} is in use by another request")

    async def renew(self, tenant: str, session_id: str, owner: str) -> None:
        """Prolong the lease, or take it again if it ran out and nobody has it. Raises SessionBusy if somebody has."""
        await self.acquire(tenant, session_id, owner)

    async def release(self, tenant: str, session_id: str, owner: str) -> None:
        """Give the lease back, if `owner` still has it."""
        key = self._root(tenant) + "lease:" + _checked("session", session_id)
        await self._run(self._release_script, [key], [owner])

    async def _indexed(self, root: str, start: int, count: int) -> list[str]:
        async with self._round_trip():
            page = await self._client.zrevrange(root + "index", start, start + count - 1)
        return [cast(bytes, member).decode() for member in page]

    async def _commit(self, tenant: str, manifest: Manifest, expected_version: int) -> list[str]:
        """Make the manifest the session's, unless segments are missing: then nothing changes and they are returned."""
        root = self._root(tenant)
        session_id = _checked("session", manifest.session_id)
        kind, *rest = await self._run(
            self._commit_script,
            [root + "session:" + session_id, root + "index"],
            [
                root,
                session_id,
                expected_version,
                manifest.version,
                encode_manifest(manifest),
                "".join(dict.fromkeys(ref.segment_id for ref in manifest.segments)),
                int(manifest.updated_at_s * 1000),
                int(manifest.expires_at_s * 1000),
                int((self._ttl_s + MARGIN_S) * 1000),
                int(2 * self._ttl_s * 1000),
            ],
        )
        if kind == b"stale":
            raise StaleSession(f"session {session_id!r} is at version {rest[0]}, not {expected_version}")
        return [digest.decode() for digest in rest]

    async def _upload(
        self, tenant: str, session_id: str, digests: Sequence[str], segments: Mapping[str, memoryview | bytes]
    ) -> None:
        root = self._root(tenant)
        for digest in digests:
            if digest not in segments:
                raise SessionCorrupt(f"session {session_id!r}: segment {digest} is neither stored nor given")
        ttl_ms = int(min(UPLOAD_TTL_S, self._ttl_s + MARGIN_S) * 1000)
        for batch in _batches({digest: len(segments[digest]) for digest in digests}):
            async with self._round_trip(), self._client.pipeline(transaction=False) as pipe:
                for digest in batch:
                    # nx: another writer may have saved the same meanwhile, to live longer
                    pipe.set(root + "segment:" + digest, segments[digest], px=ttl_ms, nx=True)
                await pipe.execute()

    async def _run(self, script: Any, keys: Sequence[str], args: Sequence[Any]) -> Any:
        async with self._round_trip():
            return await script(keys=keys, args=args)

    def _round_trip(self) -> AbstractAsyncContextManager[None]:
        return round_trip(self._client, self._timeout_s)

    def _root(self, tenant: str) -> str:
        return f"{self._prefix}:{{{_checked('tenant', tenant)}}}:"


def _checked(field: str, identifier: str) -> str:
    if not _IDENTIFIER.fullmatch(identifier):
        raise InvalidRequest(field, identifier, "must be 1 to 64 of the characters A-Z a-z 0-9 _ -")
    return identifier


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


def _first_wrong(sizes: Mapping[str, int], blobs: Mapping[str, bytes | None]) -> str | None:
    """The first segment that is missing or does not have the size and the digest that it should, if any."""
    for digest, blob in blobs.items():
        if blob is None or len(blob) != sizes[digest] or segment_id(blob) != digest:
            return digest
    return None


def _batches(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Consecutive segments of about BATCH_BYTES together, at least one."""
    batch: list[str] = []
    total = 0
    for digest, size in sizes.items():
        if batch and total + size > BATCH_BYTES:
            yield batch
            batch, total = [], 0
        batch.append(digest)
        total += size
    if batch:
        yield batch
