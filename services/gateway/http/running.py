"""Requests that run: each as long as its client stays, and all of them until the gateway stops."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.types import Receive

from services.errors import GatewayStopping


class Running:
    """Owns the tasks of running requests."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending = False

    async def until_gone(self, receive: Receive, work: Coroutine[Any, Any, None]) -> None:
        """Do the work, unless the client goes away meanwhile; then it is cancelled, which frees all that it holds.

        Args:
            receive: of a request whose body has been read.

        Raises:
            GatewayStopping: `end` was called. Whatever the work raises.
        """
        if self._ending:
            work.close()
            raise _stopping()
        task = asyncio.create_task(work)
        gone = asyncio.create_task(_disconnected(receive))
        self._tasks.add(task)
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                if task.cancelled():
                    raise _stopping()
                task.result()
        finally:
            self._tasks.discard(task)
            for each in (task, gone):
                each.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def end(self) -> None:
        """End all work, and take no more."""
        self._ending = True
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _stopping() -> GatewayStopping:
    return GatewayStopping("the gateway is being stopped")
