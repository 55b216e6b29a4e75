"""States on their way out of the pool: a bounded number of bytes each step, so that no token of others waits long."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from swaa_runtime.kv_cache.slices import KVSlice, SliceKey, needed_slices
from swaa_runtime.kv_cache.snapshot import export_slices
from swaa_runtime.kv_cache.storage import StateMemory
from swaa_runtime.request import Request


@dataclass(slots=True)
class Export:
    """State of one request after `num_tokens` tokens: all its slices, and those still to be copied."""

    request: Request
    num_tokens: int
    keys: tuple[SliceKey, ...]
    left: deque[SliceKey]

    @property
    def done(self) -> bool:
        """Whether everything has been copied."""
        return not self.left


class ExportQueue:
    """Exports in the order they were started. A request in it must keep its blocks and compute nothing."""

    def __init__(self, storage: StateMemory, step_bytes: int) -> None:
        self._storage = storage
        self._step_bytes = step_bytes
        self._exports: dict[str, Export] = {}

    def __bool__(self) -> bool:
        return bool(self._exports)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._exports

    @property
    def requests(self) -> list[Request]:
        """Requests whose state is being exported."""
        return [export.request for export in self._exports.values()]

    def start(self, request: Request, saved_keys: Collection[SliceKey]) -> None:
        """Export a request's state as it is now, except for slices that are saved already."""
        num_tokens = request.num_computed_tokens
        keys = needed_slices(request.rules, num_tokens, self._storage.bytes_per_token_layer)
        left = deque(key for key in keys if key not in saved_keys)
        self._exports[request.request_id] = Export(request, num_tokens, tuple(keys), left)

    def cancel(self, request_id: str) -> None:
        """Forget an export. Nothing happens if there is none."""
        self._exports.pop(request_id, None)

    def step(self) -> list[tuple[Export, tuple[KVSlice, ...]]]:
        """Copy about `step_bytes`, at least one slice; exports that are done leave the queue."""
        budget = self._step_bytes
        copied: list[tuple[Export, tuple[KVSlice, ...]]] = []
        for request_id, export in list(self._exports.items()):
            slices: list[KVSlice] = []
            while export.left and budget > 0:
                slices += export_slices(export.request, self._storage, [export.left.popleft()])
                budget -= slices[-1].data.nbytes
            if export.done:
                del self._exports[request_id]
            copied.append((export, tuple(slices)))
            if budget <= 0:
                break
        return copied
