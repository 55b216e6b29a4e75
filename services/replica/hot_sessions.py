"""Which sessions' states lie in this replica's KV memory still. The engine may drop any of them when it needs room."""

from __future__ import annotations

from dataclasses import dataclass

from services.replica.engine_loop import EngineLoop

MAX_SESSIONS = 10_000
"""Entries kept before those that the engine has dropped are swept out."""


@dataclass(frozen=True, slots=True)
class _Hot:
    """A saved turn, and the request that left its state behind."""

    version: int
    request_id: str


class HotSessions:
    """The last saved turn of each session, as far as its KV is here."""

    def __init__(self, engine: EngineLoop) -> None:
        self._engine = engine
        self._hot: dict[tuple[str, str], _Hot] = {}

    def find(self, tenant: str, session_id: str, version: int) -> str | None:
        """The request that left exactly this version's state in KV memory, if it is there."""
        hot = self._hot.get((tenant, session_id))
        if hot is None or hot.version != version or not self._engine.is_parked(hot.request_id):
            return None
        return hot.request_id

    def remember(self, tenant: str, session_id: str, version: int, request_id: str) -> None:
        """A turn has been saved: the state that its request left is the session's, an older one is of no use."""
        if len(self._hot) >= MAX_SESSIONS:
            self._hot = {key: hot for key, hot in self._hot.items() if self._engine.is_parked(hot.request_id)}
        older = self._hot.get((tenant, session_id))
        if older is not None:
            self._engine.drop_parked(older.request_id)
        self._hot[tenant, session_id] = _Hot(version, request_id)
