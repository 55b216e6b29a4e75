"""States that stay in the pool after their request, for the next turn to go on from: kept while memory lasts."""

from __future__ import annotations

from collections.abc import Iterable

from swaa_runtime.kv_cache.manager import KVCacheManager
from swaa_runtime.request import Request


class ParkedStates:
    """Ended requests that keep their blocks, least recently ended first. All of them may go when memory is needed."""

    def __init__(self, manager: KVCacheManager) -> None:
        self._manager = manager
        self._requests: dict[str, Request] = {}

    def __bool__(self) -> bool:
        return bool(self._requests)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    @property
    def requests(self) -> Iterable[Request]:
        """All parked requests."""
        return self._requests.values()

    @property
    def num_blocks(self) -> int:
        """Blocks that all of them hold."""
        return sum(request.num_reserved_blocks for request in self._requests.values())

    def find(self, request_id: str) -> Request | None:
        """The parked request, if it is there still."""
        return self._requests.get(request_id)

    def park(self, request: Request) -> None:
        """Keep what an ended request holds."""
        self._manager.park(request)
        self._requests[request.request_id] = request

    def adopt(self, request: Request, parked_id: str) -> list[int] | None:
        """Give a parked state to the request that continues it, at the cost of other parked states if need be.

        Returns the ids of blocks that were freed for it; None if the state is gone or the memory does not suffice.
        """
        parked = self._requests.pop(parked_id, None)
        if parked is None:
            return None
        freed: list[int] = []
        while not self._manager.adopt(request, parked):
            if not self._requests:
                self._requests[parked_id] = parked
                return None
            freed += self.evict_oldest()
        request.num_computed_tokens = request.num_restored_tokens = parked.num_computed_tokens
        return freed

    def make_room(self, num_blocks: int) -> list[int]:
        """Free the oldest states until they held so many blocks. Returns the ids; none if all together hold fewer."""
        freed: list[int] = []
        if num_blocks <= self.num_blocks:
            while len(freed) < num_blocks:
                freed += self.evict_oldest()
        return freed

    def drop(self, request_id: str) -> list[int]:
        """Free a parked state. Returns the ids of its blocks; nothing happens if it is gone."""
        request = self._requests.pop(request_id, None)
        return [] if request is None else self._manager.free(request)

    def evict_oldest(self) -> list[int]:
        """Free the state that was parked first. Returns the ids of its blocks."""
        return self.drop(next(iter(self._requests)))
