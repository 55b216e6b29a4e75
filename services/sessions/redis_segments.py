"""Segments in Redis: bytes to and from it, and commits, which make a session or a prefix of them in one atomic step."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.errors import QuotaExceeded, SegmentsMissing, SessionCorrupt, StoreUnavailable
from services.sessions import redis_scripts
from services.sessions.batching import batched_by_bytes
from services.sessions.codec import segment_id
from services.sessions.redis_connection import RedisConnection, Script
from services.sessions.redis_keys import TenantKeys
from services.sessions.store import SegmentRef
from swaa_runtime.errors import IntegrityError

BATCH_BYTES = 16 << 20
"""Segments travel in batches of about this size: few round trips, bounded memory, and no long silence on a socket."""

MARGIN_S = 600.0
"""Segments outlive those that use them by this: whoever has just read a manifest can fetch what it names."""

UPLOAD_TTL_S = 900.0
"""How long a segment waits for the commit that names it. Until then it does not count in the quota."""

MAX_COMMITS = 4
"""Commits of one save: one says what is missing, one succeeds, the others are for segments deleted in between."""


@dataclass(frozen=True, slots=True)
class Commit:
    """One call of a commit script, but for the root and the quota, which are the same in all.

    Attributes:
        name: `session:<id>` or `prefix:<id>`.
        refs: the segments that are used.
        data: the encoded manifest or prefix.
        ttl_s: how long it lives, in seconds; segments live MARGIN_S longer than `use_s`.
        keys, args: what else its script takes.
        quota_bytes: what this tenant may store; None: what all may.
    """

    script: Script
    name: str
    refs: Sequence[SegmentRef]
    data: bytes
    ttl_s: float
    use_s: float
    keys: Sequence[str]
    quota_bytes: int | None
    args: Sequence[str | int] = ()


@dataclass(frozen=True, slots=True)
class RedisSegments:
    """Segments of all tenants.

    Attributes:
        quota_bytes: what a tenant may store that has no quota of its own; None sets no bound.
    """

    connection: RedisConnection
    quota_bytes: int | None

    async def fetch(self, keys: TenantKeys, refs: Sequence[SegmentRef]) -> list[bytes]:
        """Read segments, checked against their digests. Raises SessionCorrupt if one is missing or wrong."""
        sizes = {ref.segment_id: ref.num_bytes for ref in refs}
        found: dict[str, bytes] = {}
        for batch in batched_by_bytes(sizes.items(), BATCH_BYTES):
            async with self.connection.round_trip(), self.connection.client.pipeline(transaction=False) as pipe:
                for digest in batch:
                    pipe.get(keys.segment(digest))
                blobs: dict[str, bytes | None] = dict(zip(batch, await pipe.execute(), strict=True))
            if wrong := await asyncio.to_thread(_first_wrong, sizes, blobs):
                await self._discard(keys, wrong, sizes[wrong], blobs[wrong])
                raise SessionCorrupt(f"segment {wrong} is missing or is not what was saved")
            found.update({digest: blob for digest, blob in blobs.items() if blob is not None})
        return [found[ref.segment_id] for ref in refs]

    async def commit(self, keys: TenantKeys, commit: Commit) -> list[bytes]:
        """Run the commit's script once; its answer: `missing` and digests, or what that script answers.

        Raises:
            QuotaExceeded: it would not fit, even if all prefixes went; nothing was changed.
        """
        quota = self.quota_bytes if commit.quota_bytes is None else commit.quota_bytes
        sizes = {ref.segment_id: ref.num_bytes for ref in commit.refs}
        answer: list[bytes] = await self.connection.run(
            commit.script,
            commit.keys,
            [
                keys.root,
                commit.name,
                " ".join(f"{digest}:{num_bytes}" for digest, num_bytes in sizes.items()),
                commit.data,
                int(commit.ttl_s * 1000),
                int((commit.use_s + MARGIN_S) * 1000),
                -1 if quota is None else quota,
                *commit.args,
            ],
        )
        if answer[0] == b"quota":
            used, needed = answer[1:]
            raise QuotaExceeded(
                f"{commit.name} needs {int(needed)} bytes beside the {int(used)} stored; the quota is {quota} bytes"
            )
        return answer

    async def save(self, keys: TenantKeys, commit: Commit, segments: Mapping[str, memoryview | bytes]) -> list[bytes]:
        """Commit, and upload what the commit finds missing until it finds nothing; its script's last answer.

        Args:
            segments: bytes by `codec.segment_id`. At least those that are not stored yet; others are not sent.

        Raises:
            QuotaExceeded: see `commit`.
            SegmentsMissing: some are neither stored nor given; nothing was changed.
        """
        sizes = {ref.segment_id: ref.num_bytes for ref in commit.refs}
        for digest, data in segments.items():
            if sizes.get(digest) != len(data):
                raise IntegrityError(f"segment {digest} of {len(data)} bytes is not as {commit.name} says")
        for _ in range(MAX_COMMITS):
            kind, *rest = await self.commit(keys, commit)
            if kind != b"missing":
                return [kind, *rest]
            missing = [digest.decode() for digest in rest]
            if gone := [digest for digest in missing if digest not in segments]:
                raise SegmentsMissing(commit.name, gone)
            await self.upload(keys, {digest: segments[digest] for digest in missing}, commit.use_s)
        raise StoreUnavailable(f"{commit.name}: its segments vanish from the store while it is saved")

    async def upload(self, keys: TenantKeys, segments: Mapping[str, memoryview | bytes], use_s: float) -> None:
        """Store segments until a commit names them. Raises StoreUnavailable."""
        ttl_ms = int(min(UPLOAD_TTL_S, use_s + MARGIN_S) * 1000)
        for batch in batched_by_bytes(((digest, len(data)) for digest, data in segments.items()), BATCH_BYTES):
            async with self.connection.round_trip(), self.connection.client.pipeline(transaction=False) as pipe:
                for digest in batch:
                    # nx: another writer may have saved the same meanwhile, to live longer
                    pipe.set(keys.segment(digest), segments[digest], px=ttl_ms, nx=True)
                await pipe.execute()

    async def _discard(self, keys: TenantKeys, digest: str, num_bytes: int, blob: bytes | None) -> None:
        """Away with what is of no use to anybody, and in the way of who would save it again."""
        seen = hashlib.sha1(blob or b"", usedforsecurity=False).hexdigest()
        script = Script(redis_scripts.DISCARD_SEGMENT)
        await self.connection.run(script, [keys.segment(digest)], [keys.root, digest, num_bytes, seen])


def _first_wrong(sizes: Mapping[str, int], blobs: Mapping[str, bytes | None]) -> str | None:
    """The first segment that is missing or does not have the size and the digest that it should, if any."""
    for digest, blob in blobs.items():
        if blob is None or len(blob) != sizes[digest] or segment_id(blob) != digest:
            return digest
    return None
