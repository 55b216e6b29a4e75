"""What a session is, and what a store of sessions can do. Knows nothing of Redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from swaa_runtime.kv_cache.snapshot import SliceKey
from swaa_runtime.recipe import Recipe
from swaa_runtime.visibility import Turn


@dataclass(frozen=True, slots=True)
class SegmentRef:
    """One stored part of the KV state: which part, the hex digest of its bytes (its address), and how many bytes."""

    key: SliceKey
    segment_id: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """All there is to know of one session but the KV bytes themselves.

    Attributes:
        version: 1 after the first saved turn, one more with each.
        token_ids: every token of the session; turns: closed spans that cover them.
        recipe: what the KV state was computed under; recipe_name: its name in the catalogue.
        model_fingerprint: model and dtype that the KV state belongs to.
        num_kv_tokens: leading tokens that the KV state covers (the last generated token has none).
        created_at_s, updated_at_s, expires_at_s: seconds since the epoch.
    """

    session_id: str
    version: int
    token_ids: tuple[int, ...]
    turns: tuple[Turn, ...]
    recipe: Recipe
    recipe_name: str
    model_fingerprint: str
    num_kv_tokens: int
    segments: tuple[SegmentRef, ...]
    created_at_s: float
    updated_at_s: float
    expires_at_s: float


class SessionStore(Protocol):
    """A store of sessions, per tenant. All raise StoreUnavailable when it cannot be reached."""

    async def get(self, tenant: str, session_id: str) -> Manifest:
        """Read a manifest. Raises SessionNotFound, SessionExpired or SessionCorrupt."""
        ...

    async def list_sessions(self, tenant: str, limit: int) -> list[Manifest]:
        """Up to `limit` live sessions, most recently updated first."""
        ...

    async def fetch(self, tenant: str, refs: Sequence[SegmentRef]) -> list[bytes]:
        """Read segments, checked against their digests. Raises SessionCorrupt if one is missing or wrong."""
        ...

    async def save(
        self, tenant: str, manifest: Manifest, segments: Mapping[str, memoryview | bytes], expected_version: int
    ) -> None:
        """Write new segments, then the manifest, if the stored version still is `expected_version` (0: none).

        Raises StaleSession, and leaves the stored session as it was, if it is not.
        """
        ...

    async def fork(self, tenant: str, session_id: str, new_session_id: str) -> Manifest:
        """Copy a session under a new id; segments are shared."""
        ...

    async def delete(self, tenant: str, session_id: str) -> None:
        """Forget a session, and its segments unless a fork still uses them. Raises SessionNotFound."""
        ...

    async def acquire(self, tenant: str, session_id: str, owner: str) -> None:
        """Take the session's lease for `owner`, for as long as `renew` is called. Raises SessionBusy."""
        ...

    async def renew(self, tenant: str, session_id: str, owner: str) -> None:
        """Prolong the lease. Raises SessionBusy if somebody else has it now."""
        ...

    async def release(self, tenant: str, session_id: str, owner: str) -> None:
        """Give the lease back, if `owner` still has it."""
        ...
