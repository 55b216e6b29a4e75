"""Reading, copying and deleting sessions, whatever wire it was asked for by. None of it runs the model."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from services.errors import SessionCorrupt, SessionNotFound
from services.gateway.identity import TENANT, new_session_id
from services.sessions.policy import SessionPolicy
from services.sessions.prefix import prefix_ids, prefix_scope
from services.sessions.store import Manifest, Store
from swaa_runtime.errors import InvalidRequest

DEFAULT_SESSIONS_LISTED = 100
MAX_SESSIONS_LISTED = 1000


class SessionAdmin:
    """Stateless: sessions are the store's. Every method raises what the store does: SessionNotFound and the like."""

    def __init__(self, store: Store, policy: SessionPolicy) -> None:
        self._store = store
        self._policy = policy

    async def get(self, session_id: str) -> Manifest:
        """One session."""
        return await self._store.get(TENANT, session_id)

    async def recent(self, limit: int = DEFAULT_SESSIONS_LISTED) -> Sequence[Manifest]:
        """The most recent ones. Raises InvalidRequest for a limit out of bounds."""
        if not 1 <= limit <= MAX_SESSIONS_LISTED:
            raise InvalidRequest("limit", limit, f"must be in 1..{MAX_SESSIONS_LISTED}")
        return await self._store.list_sessions(TENANT, limit)

    async def fork(self, session_id: str) -> Manifest:
        """A copy under a new id."""
        return await self._store.fork(TENANT, session_id, new_session_id())

    async def delete(self, session_id: str) -> None:
        """Forget a session, and the prefix states that its prompts have left, whoever else might have used them."""
        prefixes: list[str] = []
        with contextlib.suppress(SessionCorrupt, SessionNotFound):  # what cannot be read can still be deleted
            prefixes = self._prefixes(await self._store.get(TENANT, session_id))
        await self._store.delete(TENANT, session_id)
        await self._store.delete_prefixes(TENANT, prefixes)

    def _prefixes(self, manifest: Manifest) -> list[str]:
        scope = prefix_scope(TENANT, manifest.session_id, self._policy)
        tokens, turns, recipe = manifest.token_ids, manifest.turns, manifest.recipe
        ids = prefix_ids(scope, manifest.model_fingerprint, self._policy, recipe, tokens, turns)
        return [prefix_id for _, prefix_id in ids]
