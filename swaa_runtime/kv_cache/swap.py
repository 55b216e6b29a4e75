"""States of preempted requests in host memory: copied out, kept while the request waits, copied back exactly.

take ──▶ leaving ──copy_out──▶ kept ──bring_back──▶ returning ──copy_in──▶ gone
             a bounded number of bytes each step, so that no token of others waits long
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from swaa_runtime.errors import IntegrityError
from swaa_runtime.kv_cache.manager import KVCacheManager
from swaa_runtime.kv_cache.restore import Restore
from swaa_runtime.kv_cache.slices import KVSlice, SliceKey, resident_slices
from swaa_runtime.kv_cache.snapshot import export_slices
from swaa_runtime.kv_cache.storage import StateMemory
from swaa_runtime.request import Request, Status


@dataclass(slots=True)
class _Swapped:
    """One state: which slices are in the pool still, and which are here.

    Attributes:
        num_bytes: what it counts for, which is what its blocks took.
        restore: takes it back in; None while it is not on its way back.
    """

    request: Request
    keys: tuple[SliceKey, ...]
    num_bytes: int
    left: deque[SliceKey]
    slices: deque[KVSlice] = field(default_factory=deque)
    restore: Restore | None = None


class SwappedStates:
    """At most `max_bytes` of states, of which `step_bytes` (at least one slice) are copied each way in a step."""

    def __init__(self, manager: KVCacheManager, storage: StateMemory, max_bytes: int, step_bytes: int) -> None:
        self._manager = manager
        self._storage = storage
        self._max_bytes = max_bytes
        self._step_bytes = step_bytes
        self._states: dict[str, _Swapped] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._states

    @property
    def num_bytes(self) -> int:
        """What all states here count for."""
        return sum(state.num_bytes for state in self._states.values())

    @property
    def free_bytes(self) -> int:
        """Room for more states."""
        return self._max_bytes - self.num_bytes

    @property
    def is_moving(self) -> bool:
        """Whether a step would copy something."""
        return any(state.left or state.restore is not None for state in self._states.values())

    def size_bytes(self, request: Request) -> int:
        """What the state of a request counts for: the blocks that it holds."""
        return request.num_held_blocks * self._storage.bytes_per_block

    def take(self, request: Request) -> None:
        """Start to copy out the state of a request, which must run nothing from now on."""
        rules, done = request.rules, request.num_computed_tokens
        per_token_layer = self._storage.bytes_per_token_layer
        keys = tuple(resident_slices(rules, done, request.prompt_stop, request.continues, per_token_layer))
        self._states[request.request_id] = _Swapped(request, keys, self.size_bytes(request), deque(keys))

    def copy_out(self, leaving: Iterable[Request]) -> list[Request]:
        """Copy some more of the states that leave; returns the requests whose states are here wholly.

        Their blocks may be freed. Of one that has computed nothing there is nothing to keep.
        """
        budget, here = self._step_bytes, []
        for request in leaving:
            state = self._states[request.request_id]
            while state.left and budget > 0:
                state.slices += export_slices(request, self._storage, [state.left.popleft()])
                budget -= state.slices[-1].data.nbytes
            if not state.left:
                here.append(request)
                if not request.num_computed_tokens:
                    del self._states[request.request_id]
        return here

    def bring_back(self, request: Request) -> None:
        """Start to copy back the state of a request that has been admitted; it runs nothing until that is done."""
        state = self._states[request.request_id]
        state.restore = Restore(request.num_computed_tokens, state.keys)
        state.restore.begin(request, self._manager, self._storage)

    def copy_in(self) -> None:
        """Copy some more of the states that come back; those that are in the pool wholly are gone from here."""
        budget = self._step_bytes
        for request_id, state in list(self._states.items()):
            if state.restore is None or budget <= 0:
                continue
            while state.slices and budget > 0:
                part = state.slices.popleft()
                state.restore.add([part])
                budget -= part.data.nbytes
            if state.restore.advance(state.request, self._manager, self._storage) is not None:
                del self._states[request_id]

    def drop(self, request_id: str) -> None:
        """Forget a state. Nothing happens if there is none."""
        self._states.pop(request_id, None)

    def check_integrity(self, requests: Collection[Request]) -> None:
        """Raise IntegrityError unless every state here is a live request's, and whoever waits with one has it here.

        Args:
            requests: all live requests.
        """
        live = {request.request_id: request for request in requests}
        for request_id, state in self._states.items():
            if live.get(request_id) is not state.request:
                raise IntegrityError(f"host memory has the state of request {request_id}, which has ended")
        for request in requests:
            waits = request.status is Status.WAITING and request.num_computed_tokens > 0
            if waits and request.request_id not in self._states:
                raise IntegrityError(f"the state of request {request.request_id} is neither in the pool nor here")
        if self.free_bytes < 0:
            raise IntegrityError(f"states in host memory are {-self.free_bytes} bytes above their bound")
