"""Holding a session's lease while a turn runs, so that no two turns of a session run at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from services.errors import SessionBusy, StoreUnavailable
from services.replica.job import SessionUse
from services.sessions.store import SessionStore

RENEW_S = 5.0
RELEASE_RETRIES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""A store that comes back within this does not find the session busy until its lease runs out."""


class Leases:
    """Leases of one replica: held, renewed, and given back even if the store is away for a moment."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self._releasing: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def hold(self, session: SessionUse, owner: str) -> AsyncIterator[int]:
        """Hold the session's lease in the body; yields its fence. Raises SessionBusy, StoreUnavailable."""
        fence = await self._store.acquire(session.tenant, session.session_id, owner)
        leaving = asyncio.Event()

        async def keep() -> None:
            while not leaving.is_set():
                await asyncio.sleep(RENEW_S)
                # A lost lease does not end the turn: saving shows the fence, so a stale writer changes nothing.
                with contextlib.suppress(StoreUnavailable, SessionBusy):
                    await self._store.renew(session.tenant, session.session_id, owner)

        renewing = asyncio.create_task(keep())

        async def release() -> None:
            await asyncio.wait([renewing])
            if not await self._try_release(session, owner):
                task = asyncio.create_task(self._keep_releasing(session, owner))
                self._releasing.add(task)
                task.add_done_callback(self._releasing.discard)

        try:
            yield fence
        finally:
            leaving.set()  # the cancellation alone may be lost: in Python 3.11 asyncio.wait_for swallows some
            renewing.cancel()
            await asyncio.shield(release())

    async def close(self) -> None:
        """Stop trying. Call when no turn runs any more."""
        for task in self._releasing:
            task.cancel()
        await asyncio.gather(*self._releasing, return_exceptions=True)

    async def _try_release(self, session: SessionUse, owner: str) -> bool:
        try:
            await self._store.release(session.tenant, session.session_id, owner)
        except StoreUnavailable:
            return False
        return True

    async def _keep_releasing(self, session: SessionUse, owner: str) -> None:
        for wait_s in RELEASE_RETRIES_S:
            await asyncio.sleep(wait_s)
            if await self._try_release(session, owner):
                return
