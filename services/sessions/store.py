"""What a session is, and what a store of sessions can do. Knows nothing of Redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from swaa_runtime.kv_cache.slices import SliceKey
from swaa_runtime.recipe import Recipe
from swaa_runtime.visibility import Turn

KVFormat = Literal["raw", "zstd", "int8", "fp8"]
"""How KV is stored: as it is; losslessly compressed; or rounded to 8 bits with a scale per token and head."""


@dataclass(frozen=True, slots=True)
class SegmentRef:
    """One stored part of the KV state: which part, the hex digest of its stored bytes (its address), and how many."""

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
        kv_format: how its segments are encoded; lossy ones are another state, so they never mix with others.
        num_kv_tokens: leading tokens that the KV state covers (the last generated token has none); 0 if only tokens
            are kept.
        created_at_s, updated_at_s, expires_at_s: seconds since the epoch.
        idempotency_key: of the request that the last turn was for; empty without, and in forks and imports.
    """

    session_id: str
    version: int
    token_ids: tuple[int, ...]
    turns: tuple[Turn, ...]
    recipe: Recipe
    recipe_name: str
    model_fingerprint: str
    kv_format: KVFormat
    num_kv_tokens: int
    segments: tuple[SegmentRef, ...]
    created_at_s: float
    updated_at_s: float
    expires_at_s: float
    idempotency_key: str = ""


@dataclass(frozen=True, slots=True)
class SavedPrefix:
    """KV state after the first `num_tokens` tokens of some prompt: for whoever's prompt starts with the same tokens.

    Attributes:
        prefix_id: hex digest over everything the state is a function of (`prefix.prefix_ids`): equal ids, equal states.
    """

    prefix_id: str
    num_tokens: int
    segments: tuple[SegmentRef, ...]


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
            fence: what `acquire` answered; None writes without a lease (imports).
            quota_bytes: what this tenant may store, wherever it says so; None: what the store bounds every tenant to.

        Raises StaleSession if it is not, or if somebody else has taken the lease since `fence`; QuotaExceeded if the
        tenant's bytes would come above its quota; SegmentsMissing if segments are neither stored nor given: what a turn
        has built on may be deleted before it is saved. All leave the stored session as it was.
        """
        ...

    async def fork(self, tenant: str, session_id: str, new_session_id: str, quota_bytes: int | None = None) -> Manifest:
        """Copy a session under a new id; segments are shared. The copy has no idempotency key: no call asked for it."""
        ...

    async def delete(self, tenant: str, session_id: str) -> None:
        """Forget a session, and its segments unless a fork still uses them. Raises SessionNotFound."""
        ...

    async def acquire(self, tenant: str, session_id: str, owner: str) -> int:
        """Take the session's lease for `owner`, for as long as `renew` is called. Raises SessionBusy.

        Returns the fence: a number that grows each time the lease changes hands, to be shown to `save`.
        """
        ...

    async def renew(self, tenant: str, session_id: str, owner: str) -> None:
        """Prolong the lease. Raises SessionBusy if somebody else has it now."""
        ...

    async def release(self, tenant: str, session_id: str, owner: str) -> None:
        """Give the lease back, if `owner` still has it."""
        ...


class PrefixStore(Protocol):
    """A store of prefixes, per tenant: a cache that may lose any of them. All raise StoreUnavailable.

    Prefixes count in the tenant's quota, and are the first to go when a session needs the room.
    """

    async def find_prefix(self, tenant: str, prefix_ids: Sequence[str]) -> SavedPrefix | None:
        """The first of these that is stored, if any; finding it prolongs its life."""
        ...

    async def save_prefix(
        self,
        tenant: str,
        prefix: SavedPrefix,
        segments: Mapping[str, memoryview | bytes],
        ttl_s: float,
        quota_bytes: int | None = None,
    ) -> None:
        """Write new segments, then the prefix. Raises QuotaExceeded, SegmentsMissing as `SessionStore.save` does."""
        ...

    async def delete_prefixes(self, tenant: str, prefix_ids: Sequence[str]) -> None:
        """Forget prefixes, and their segments unless others use them. Unknown ones are no error."""
        ...


class Store(SessionStore, PrefixStore, Protocol):
    """A store of both."""
