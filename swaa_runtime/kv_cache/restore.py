"""A saved state on its way into a request, slice by slice, while other requests run.

    tokens   0 ........... compute_stop ............ num_tokens ........ prompt_stop
             |  computed meanwhile   |  placed as it arrives |  computed after  |

With `compute_stop` 0 everything is loaded. Otherwise the request computes the first tokens itself while the KV of the
others arrives, which is faster than either alone when computing and fetching cost about the same. Layers that keep only
a window have another one at `compute_stop` than at `num_tokens`: theirs is swapped in at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from swaa_runtime.errors import InvalidRequest
from swaa_runtime.kv_cache.block_pool import NULL_BLOCK
from swaa_runtime.kv_cache.manager import KVCacheManager
from swaa_runtime.kv_cache.slices import KVSlice, SliceKey, keeps_whole_history
from swaa_runtime.kv_cache.storage import StateMemory, slot_ids
from swaa_runtime.request import Request


class Restore:
    """What is to come into one request, and what of it has arrived.

    Args:
        num_tokens: computed tokens of the saved state.
        keys: its slices that will arrive: all, or those that reach past `compute_stop` and all of layers with a window.
        compute_stop: tokens [0, compute_stop) are computed instead, in layers that keep everything.

    Raises:
        InvalidRequest: for a `compute_stop` that is not below `num_tokens`.
    """

    def __init__(self, num_tokens: int, keys: Sequence[SliceKey], compute_stop: int = 0) -> None:
        if not 0 <= compute_stop < num_tokens:
            raise InvalidRequest("compute_stop", compute_stop, f"must be in 0..{num_tokens - 1}")
        self.num_tokens = num_tokens
        self.compute_stop = compute_stop
        self.keys = tuple(keys)
        self._pending = set(keys)
        self._arrived: list[KVSlice] = []

    def begin(self, request: Request, manager: KVCacheManager, storage: StateMemory) -> None:
        """Lay out the blocks of an admitted request that slices can be placed into as they arrive."""
        request.compute_limit = self.compute_stop
        for layer in range(len(request.rules)):
            if self._is_direct(request, layer):
                self._lay_out(request, layer, manager, storage)

    def add(self, slices: Iterable[KVSlice]) -> None:
        """Take in slices, in any order. Raises InvalidRequest for one that is not expected (any more)."""
        for part in slices:
            if part.key not in self._pending:
                raise InvalidRequest("slice", part.key, "is not one that is to come")
            self._pending.remove(part.key)
            self._arrived.append(part)

    def advance(self, request: Request, manager: KVCacheManager, storage: StateMemory) -> list[int] | None:
        """Place what has arrived; complete the state if nothing is missing. Call between steps, after `begin`.

        Returns None while something is missing, else the ids of blocks that are free since completion.
        """
        direct: list[KVSlice] = []
        swapped: list[KVSlice] = []
        for part in self._arrived:
            (direct if self._is_direct(request, part.key.layers[0]) else swapped).append(part)
        self._arrived = swapped
        _write(request, storage, direct)
        if self._pending or request.num_computed_tokens < self.compute_stop:
            return None
        swapped_layers = [layer for layer in range(len(request.rules)) if not self._is_direct(request, layer)]
        freed = {block for layer in swapped_layers for block in manager.truncate(request, layer, 0)}
        for layer in swapped_layers:
            self._lay_out(request, layer, manager, storage)
            freed.difference_update(request.block_tables[layer])  # some are in use again
        _write(request, storage, swapped)
        request.num_restored_tokens += self.num_tokens - request.num_computed_tokens
        request.num_computed_tokens = self.num_tokens
        request.compute_limit = None
        return list(freed)

    def abandon(self, request: Request, manager: KVCacheManager) -> list[int]:
        """Give up: keep what the request has computed itself, and let it compute the rest. Returns block ids freed."""
        request.compute_limit = None
        return [
            block
            for layer in range(len(request.block_tables))
            for block in manager.truncate(request, layer, request.num_computed_tokens)
        ]

    def _is_direct(self, request: Request, layer: int) -> bool:
        """Whether a layer's slices can go into its table at once."""
        return self.compute_stop == 0 or keeps_whole_history(request.rules[layer])

    def _lay_out(self, request: Request, layer: int, manager: KVCacheManager, storage: StateMemory) -> None:
        """Place a layer's blocks.

        What a block holds beside restored tokens is zeroed: a former owner's NaN would outlast a mask (0 x NaN is NaN).
        """
        size = manager.block_size_tokens
        ranges = [(key.start, key.stop) for key in self.keys if layer in key.layers]
        if self._is_direct(request, layer):
            ranges.append((0, self.compute_stop))
        touched = {block for start, stop in ranges for block in range(start // size, -(-stop // size))}
        whole = {block for start, stop in ranges for block in range(-(-start // size), stop // size)}
        manager.place(request, layer, touched, self.num_tokens)
        table = request.block_tables[layer]
        storage.fill([block for at, block in enumerate(table) if block != NULL_BLOCK and at not in whole], 0.0)


def _write(request: Request, storage: StateMemory, slices: Iterable[KVSlice]) -> None:
    size = storage.block_size_tokens
    for part in slices:
        tables = [request.block_tables[layer] for layer in part.key.layers]
        slots = [slot_ids(table, part.key.start, part.key.stop, size) for table in tables]
        storage.place(np.stack(slots), part.data)
