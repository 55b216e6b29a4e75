"""Prefixes in Redis: a cache of KV states that many prompts begin with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.errors import SessionCorrupt
from services.sessions import redis_scripts
from services.sessions.prefix_codec import decode_prefix, encode_prefix
from services.sessions.redis_connection import Script
from services.sessions.redis_keys import TenantKeys, checked
from services.sessions.redis_segments import Commit, RedisSegments
from services.sessions.store import SavedPrefix

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RedisPrefixes:
    """Prefixes of all tenants. Those that were not used for longest go first when a quota has no room."""

    segments: RedisSegments

    async def find(self, keys: TenantKeys, prefix_ids: Sequence[str]) -> SavedPrefix | None:
        """The first of these that is stored, if any; finding it begins its time to live, and its segments', anew.

        One round trip, and one more for each that turns out to be damaged and is deleted.
        """
        ids = [checked("prefix", prefix_id) for prefix_id in prefix_ids]
        script = Script(redis_scripts.FIND_PREFIX)
        while ids and (answer := await self.segments.connection.run(script, [keys.prefixes], [keys.root, *ids])):
            place, data = answer
            try:
                return _read(ids[place], data)
            except SessionCorrupt as exc:  # a cache may lose it; whoever computes it again saves it again
                _LOG.warning("deleted: %s", exc)
                await self.delete(keys, [ids[place]])
            ids = ids[place + 1 :]
        return None

    async def save(
        self,
        keys: TenantKeys,
        prefix: SavedPrefix,
        segments: Mapping[str, memoryview | bytes],
        ttl_s: float,
        quota_bytes: int | None,
    ) -> None:
        """Write new segments, then the prefix, to live `ttl_s` seconds after it was last found.

        Raises QuotaExceeded, SegmentsMissing as `RedisSegments.save` does.
        """
        commit = Commit(
            script=Script(redis_scripts.COMMIT_PREFIX),
            name=f"prefix:{prefix.prefix_id}",
            refs=prefix.segments,
            data=encode_prefix(prefix),
            ttl_s=ttl_s,
            use_s=ttl_s,
            quota_bytes=quota_bytes,
            keys=[keys.prefix(prefix.prefix_id), keys.prefixes],
            args=[prefix.prefix_id],
        )
        await self.segments.save(keys, commit, segments)

    async def delete(self, keys: TenantKeys, prefix_ids: Sequence[str]) -> None:
        """Forget prefixes, and their segments unless others use them. Unknown ones are no error."""
        ids = [checked("prefix", prefix_id) for prefix_id in prefix_ids]
        await self.segments.connection.run(Script(redis_scripts.DELETE_PREFIXES), [keys.prefixes], [keys.root, *ids])


def _read(prefix_id: str, data: bytes) -> SavedPrefix:
    try:
        prefix = decode_prefix(data)
    except SessionCorrupt as exc:
        raise SessionCorrupt(f"prefix {prefix_id!r}: {exc}") from exc
    if prefix.prefix_id != prefix_id:
        raise SessionCorrupt(f"prefix {prefix_id!r}: what is stored is of another")
    return prefix
