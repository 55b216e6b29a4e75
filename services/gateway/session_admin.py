"""Reading, copying and deleting sessions, whatever wire it was asked for by. None of it runs the model."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from services.errors import SessionCorrupt, SessionNotFound
from services.gateway.catalog_source import Catalogs
from services.gateway.identity import Identity, new_session_id
from services.sessions.policy import SessionPolicy
from services.sessions.prefix import prefix_ids, prefix_scope
from services.sessions.store import Manifest, Store
from swaa_runtime.errors import InvalidRequest

DEFAULT_SESSIONS_LISTED = 100
MAX_SESSIONS_LISTED = 1000


class SessionAdmin:
    """Stateless: sessions are the store's. Every method raises what the store does: SessionNotFound and the like.

    A session of another tenant is none: it is looked for among those of who asks, and nowhere else.
    """

    def __init__(self, store: Store, policy: SessionPolicy, catalogs: Catalogs) -> None:
        """`catalogs` say what tenants may store."""
        self._store = store
        self._policy = policy
        self._catalogs = catalogs

    async def get(self, identity: Identity, session_id: str) -> Manifest:
        """One session."""
        return await self._store.get(identity.tenant, session_id)

    async def recent(self, identity: Identity, limit: int = DEFAULT_SESSIONS_LISTED) -> Sequence[Manifest]:
        """The most recent ones. Raises InvalidRequest for a limit out of bounds."""
        if not 1 <= limit <= MAX_SESSIONS_LISTED:
            raise InvalidRequest("limit", limit, f"must be in 1..{MAX_SESSIONS_LISTED}")
        return await self._store.list_sessions(identity.tenant, limit)

    async def fork(self, identity: Identity, session_id: str) -> Manifest:
        """A copy under a new id."""
        tenant = identity.tenant
        return await self._store.fork(tenant, session_id, new_session_id(), self._quota_bytes(tenant))

    async def save_import(self, identity: Identity, manifest: Manifest, segments: Mapping[str, bytes]) -> Manifest:
        """Keep a session that came in a file; as it is stored."""
        tenant = identity.tenant
        await self._store.save(tenant, manifest, segments, expected_version=0, quota_bytes=self._quota_bytes(tenant))
        return await self._store.get(tenant, manifest.session_id)

    async def delete(self, identity: Identity, session_id: str) -> None:
        """Forget a session, and the prefix states that its prompts have left, whoever else might have used them."""
        tenant, prefixes = identity.tenant, list[str]()
        with contextlib.suppress(SessionCorrupt, SessionNotFound):  # what cannot be read can still be deleted
            prefixes = self._prefixes(tenant, await self._store.get(tenant, session_id))
        await self._store.delete(tenant, session_id)
        await self._store.delete_prefixes(tenant, prefixes)

    def _quota_bytes(self, tenant: str) -> int | None:
        return self._catalogs.current.tenant(tenant).quota.stored_bytes

    def _prefixes(self, tenant: str, manifest: Manifest) -> list[str]:
        scope = prefix_scope(tenant, manifest.session_id, self._policy)
        tokens, turns, recipe = manifest.token_ids, manifest.turns, manifest.recipe
        ids = prefix_ids(scope, manifest.model_fingerprint, self._policy, recipe, tokens, turns)
        return [prefix_id for _, prefix_id in ids]
