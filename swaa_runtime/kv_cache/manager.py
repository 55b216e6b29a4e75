"""Who holds which block: grows and trims the block tables of requests, and admits by what they can come to hold.

A table is logical: entry i is the block of tokens [i*B, (i+1)*B) of that layer, NULL_BLOCK where it was freed.

    tokens   0      S                    n-W+1        n         n+C
             |sinks |   freed            |  window    |  chunk  |
    kept     [0, ceil(S/B))              [floor((n-W+1)/B), ceil((n+C)/B))
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, MutableSequence

from swaa_runtime.errors import IntegrityError, OutOfCapacity
from swaa_runtime.kv_cache.block_pool import NULL_BLOCK, BlockPool
from swaa_runtime.recipe import LayerRule
from swaa_runtime.request import Request
from swaa_runtime.visibility import first_needed, keeps_everything


class KVCacheManager:
    """Block tables of all requests over one pool. Integers only: the tensors are `storage`'s."""

    def __init__(self, num_blocks: int, block_size_tokens: int, max_step_tokens: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.block_size_tokens = block_size_tokens
        self.max_step_tokens = max_step_tokens
        self.num_reserved_blocks = 0

    @property
    def num_unreserved_blocks(self) -> int:
        """Blocks that are set aside for nobody."""
        return self.pool.num_blocks - 1 - self.num_reserved_blocks

    def max_blocks(self, request: Request) -> int:
        """Most blocks that a request can hold at any time, over all layers: what admission reserves."""
        return sum(self._max_layer_blocks(rule, request) for rule in request.rules)

    def _max_layer_blocks(self, rule: LayerRule, request: Request) -> int:
        size = self.block_size_tokens
        everything = _ceil_div(request.max_total_tokens, size)
        if rule.window is None or rule.full_decode or (rule.full_tail and request.continues):
            return everything
        bound = layer_block_bound(rule, size, min(self.max_step_tokens, request.max_total_tokens))
        if rule.full_tail:
            # All of the prompt is resident when the tail runs; what is generated then comes on top of the window only.
            bound = max(bound, _ceil_div(request.prompt_stop, size))
        return min(everything, bound)

    def check_fits(self, request: Request) -> None:
        """Raise OutOfCapacity if the request could not be held even by an empty pool."""
        needed, capacity = self.max_blocks(request), self.pool.num_blocks - 1
        if needed > capacity:
            raise OutOfCapacity(
                f"the request needs {needed} KV blocks of {self.block_size_tokens} tokens, the pool has {capacity}; "
                "shorten the prompt or max_tokens, or pick a recipe that keeps less"
            )

    def reserve(self, request: Request) -> bool:
        """Set aside all that a request can come to hold. False if that much is not left now."""
        needed = self.max_blocks(request)
        if needed > self.num_unreserved_blocks:
            return False
        self.num_reserved_blocks += needed
        request.num_reserved_blocks = needed
        # Arrays: each step sends its tables to the device, and of a long prompt in many layers they are long.
        request.block_tables = [array("i") for _ in request.rules]
        return True

    def park(self, request: Request) -> None:
        """Of a request that has ended, keep what it holds, and set aside no more than that."""
        self.num_reserved_blocks -= request.num_reserved_blocks - request.num_held_blocks
        request.num_reserved_blocks = request.num_held_blocks

    def adopt(self, request: Request, parked: Request) -> bool:
        """Give all that a parked request holds to the one that continues it, and set aside what that can come to hold.

        False, and nothing changes, if that much is not left now.
        """
        needed = self.max_blocks(request)
        if self.num_reserved_blocks - parked.num_reserved_blocks + needed > self.pool.num_blocks - 1:
            return False
        self.num_reserved_blocks += needed - parked.num_reserved_blocks
        request.num_reserved_blocks = needed
        request.block_tables, request.num_held_blocks = parked.block_tables, parked.num_held_blocks
        request.peak_blocks = request.num_held_blocks
        parked.block_tables, parked.num_held_blocks, parked.num_reserved_blocks = [], 0, 0
        return True

    def extend(self, request: Request, stop: int) -> None:
        """Make every layer's table cover tokens [0, stop), allocating what lies past its end."""
        num_blocks = _ceil_div(stop, self.block_size_tokens)
        if min(map(len, request.block_tables)) >= num_blocks:
            return  # most next tokens need no new block
        for table in request.block_tables:
            if (missing := num_blocks - len(table)) > 0:
                table.extend(self.pool.allocate_many(missing, after=table[-1] if table else NULL_BLOCK))
                request.num_held_blocks += missing
        request.peak_blocks = max(request.peak_blocks, request.num_held_blocks)

    def place(self, request: Request, layer: int, blocks: Iterable[int], num_tokens: int) -> None:
        """Lay out one layer's table for `num_tokens` restored tokens with only the given logical blocks present.

        A last block that is not full is always present: the next token goes there, whatever was restored of it.
        """
        table = request.block_tables[layer]
        present = set(blocks)
        if num_tokens % self.block_size_tokens:
            present.add(num_tokens // self.block_size_tokens)
        for index in range(_ceil_div(num_tokens, self.block_size_tokens)):
            if index in present:
                self._append(request, table)
            else:
                table.append(NULL_BLOCK)

    def truncate(self, request: Request, layer: int, num_tokens: int) -> list[int]:
        """Free one layer's blocks past the first `num_tokens` tokens and forget them. Returns the ids freed."""
        table = request.block_tables[layer]
        keep = _ceil_div(num_tokens, self.block_size_tokens)
        freed = [block for block in table[keep:] if block != NULL_BLOCK]
        for block in freed:
            self.pool.free(block)
        del table[keep:]
        request.num_held_blocks -= len(freed)
        return freed

    def _append(self, request: Request, table: MutableSequence[int]) -> None:
        table.append(self.pool.allocate(after=table[-1] if table else NULL_BLOCK))
        request.num_held_blocks += 1
        request.peak_blocks = max(request.peak_blocks, request.num_held_blocks)

    def release_unseen(self, request: Request) -> list[int]:
        """Free every block that no later query of the request can see. Returns the ids freed."""
        size = self.block_size_tokens
        freed: list[int] = []
        done = request.num_computed_tokens
        for rule, layers in request.layers_by_rule:
            if keeps_everything(rule, done, request.prompt_stop, request.continues):
                continue
            first, stop = _ceil_div(rule.sink_tokens, size), first_needed(rule, done, False) // size
            for layer in layers:
                # Walk down from the window's first block until one that is gone already: the rest went before it.
                table = request.block_tables[layer]
                before = len(freed)
                for index in range(min(stop, len(table)) - 1, first - 1, -1):
                    if table[index] == NULL_BLOCK:
                        break
                    self.pool.free(table[index])
                    freed.append(table[index])
                    table[index] = NULL_BLOCK
                if len(freed) == before:
                    break  # layers of one rule lose theirs together, and few steps free any
        request.num_held_blocks -= len(freed)
        return freed

    def free(self, request: Request) -> list[int]:
        """Free all that a request holds, and its reservation. Returns the ids freed."""
        freed = [block for table in request.block_tables for block in table if block != NULL_BLOCK]
        for block in freed:
            self.pool.free(block)
        request.block_tables = []
        request.num_held_blocks = 0
        self.num_reserved_blocks -= request.num_reserved_blocks
        request.num_reserved_blocks = 0
        return freed

    def check_integrity(self, requests: Iterable[Request]) -> None:
        """Raise IntegrityError unless free + held = all, no block is held twice, nobody holds more than reserved."""
        held: list[int] = []
        reserved = 0
        for request in requests:
            blocks = [block for table in request.block_tables for block in table if block != NULL_BLOCK]
            if len(blocks) != request.num_held_blocks:
                raise IntegrityError(
                    f"request {request.request_id} holds {len(blocks)} blocks, counts {request.num_held_blocks}"
                )
            if len(blocks) > request.num_reserved_blocks:
                raise IntegrityError(
                    f"request {request.request_id} holds {len(blocks)} blocks, reserved {request.num_reserved_blocks}"
                )
            held += blocks
            reserved += request.num_reserved_blocks
        if len(set(held)) != len(held):
            raise IntegrityError("a block is held twice")
        if len(held) != self.pool.num_used_blocks:
            raise IntegrityError(f"{self.pool.num_used_blocks} blocks are in use, requests hold {len(held)}")
        if reserved != self.num_reserved_blocks:
            raise IntegrityError(f"{self.num_reserved_blocks} blocks are reserved, requests have {reserved}")


def layer_block_bound(rule: LayerRule, block_size_tokens: int, max_chunk_tokens: int) -> int:
    """Most blocks a layer holds that keeps only sinks and window: ceil(S/B) + ceil((W-1+C)/B) + 1."""
    if rule.window is None:
        raise ValueError("a full layer has no such bound")
    sinks = _ceil_div(rule.sink_tokens, block_size_tokens)
    return sinks + _ceil_div(rule.window - 1 + max_chunk_tokens, block_size_tokens) + 1


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
