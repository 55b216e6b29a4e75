"""The pool of KV blocks: ids only. A block holds `block_size_tokens` consecutive tokens' K and V of one layer."""

from __future__ import annotations

from swaa_runtime.errors import IntegrityError, OutOfCapacity

NULL_BLOCK = 0
"""Stands in a block table where a block was freed. It is real, zeroed memory: 0 x NaN would be NaN."""


class BlockPool:
    """Hands out block ids 1..num_blocks-1. Any freed block of any layer serves any other.

    An id that follows the caller's previous block is preferred, so that tables tend to be runs of consecutive ids,
    which attention can read in place instead of gathering.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        # A dict is an ordered set: membership, removal and "the last one freed" are all O(1).
        self._free = dict.fromkeys(range(num_blocks - 1, 0, -1))

    @property
    def num_free_blocks(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def num_used_blocks(self) -> int:
        """Blocks that a table holds; the null block is not counted."""
        return self.num_blocks - 1 - len(self._free)

    def allocate(self, after: int = NULL_BLOCK) -> int:
        """Take one free block, the one after `after` if that is free. Raises OutOfCapacity if there is none."""
        if after != NULL_BLOCK and after + 1 in self._free:
            del self._free[after + 1]
            return after + 1
        if not self._free:
            raise OutOfCapacity(f"KV pool of {self.num_blocks - 1} blocks is exhausted")
        return self._free.popitem()[0]

    def allocate_many(self, count: int, after: int = NULL_BLOCK) -> list[int]:
        """As so many calls of `allocate`, each after the block before; none is taken if that raises OutOfCapacity."""
        free = self._free
        if count > len(free):
            raise OutOfCapacity(f"KV pool of {self.num_blocks - 1} blocks has {len(free)} left, {count} are needed")
        blocks = []
        for _ in range(count):
            if after != NULL_BLOCK and after + 1 in free:
                after += 1
                del free[after]
            else:
                after = free.popitem()[0]
            blocks.append(after)
        return blocks

    def free(self, block: int) -> None:
        """Give a block back. Raises IntegrityError if it was free already."""
        if not 0 < block < self.num_blocks or block in self._free:
            raise IntegrityError(f"block {block} is freed but was not in use")
        self._free[block] = None
