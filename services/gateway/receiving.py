"""Requests on their way in: how large each may be, how fast it must come, and how much of all is held at a time.

An `Intake` is one gateway's, for both wires. A `Receiving` is one request's: it is told of every piece before that is
kept, and what it counted is free again once the request is whole, or refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

from services.errors import ClientTooSlow
from services.gateway.limits import MAX_IMPORTS, MIN_RECEIVE_BYTES_PER_S, PAUSE_TIMEOUT_S
from swaa_runtime.errors import InvalidRequest, OutOfCapacity

T = TypeVar("T")

Clock = Callable[[], float]


class Intake:
    """What one gateway is receiving now. Belongs to one event loop.

    Args:
        max_bytes: of all requests together that are not whole yet.
        clock: seconds that never go back.
    """

    def __init__(self, max_bytes: int, clock: Clock = time.monotonic) -> None:
        self.held_bytes = 0
        self.num_imports = 0
        self._max_bytes = max_bytes
        self._clock = clock

    @contextlib.contextmanager
    def receiving(self, field: str, max_bytes: int) -> Iterator[Receiving]:
        """A request of at most so many bytes, of which all are kept; `field` names it in refusals."""
        receiving = Receiving(self, field, max_bytes, self._clock)
        try:
            yield receiving
        finally:
            self.held_bytes -= receiving.num_bytes

    @contextlib.contextmanager
    def importing(self) -> Iterator[Pace]:
        """An archive, which is kept on disk. Raises OutOfCapacity if there are too many already."""
        if self.num_imports >= MAX_IMPORTS:
            raise OutOfCapacity(f"{self.num_imports} sessions are being imported: at most {MAX_IMPORTS} are at a time")
        self.num_imports += 1
        try:
            yield Pace(self._clock)
        finally:
            self.num_imports -= 1

    def hold(self, num_bytes: int) -> None:
        """Count bytes that are about to be kept. Raises OutOfCapacity if there is no room for them."""
        if self.held_bytes + num_bytes > self._max_bytes:
            raise OutOfCapacity(
                f"{self.held_bytes} bytes of requests are on their way in: at most {self._max_bytes} are at a time"
            )
        self.held_bytes += num_bytes


class Pace:
    """Whether something comes fast enough: a pause is bounded, and so is the time in all."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started_s = clock()
        self.num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """So many more have come."""
        self.num_bytes += num_bytes

    def left_s(self) -> float:
        """How long the next piece may take."""
        ends_s = self._started_s + PAUSE_TIMEOUT_S + self.num_bytes / MIN_RECEIVE_BYTES_PER_S
        return min(PAUSE_TIMEOUT_S, ends_s - self._clock())

    async def next(self, pieces: AsyncIterator[T]) -> T | None:
        """The next piece; None: there is no more. Raises ClientTooSlow."""
        left_s = self.left_s()
        try:
            if left_s <= 0:
                raise TimeoutError
            async with asyncio.timeout(left_s):
                return await anext(pieces, None)
        except TimeoutError:
            took_s = self._clock() - self._started_s
            raise ClientTooSlow(
                f"{self.num_bytes} bytes of the request came in {took_s:.0f} s: no pause may be longer than "
                f"{PAUSE_TIMEOUT_S:.0f} s, and then {MIN_RECEIVE_BYTES_PER_S} bytes a second must come"
            ) from None

    async def each(self, pieces: AsyncIterator[T], size: Callable[[T], int]) -> AsyncIterator[T]:
        """All pieces, counted by `size`. Raises ClientTooSlow, and what `add` raises."""
        while (piece := await self.next(pieces)) is not None:
            self.add(size(piece))
            yield piece


class Receiving(Pace):
    """One request that is kept as it comes."""

    def __init__(self, intake: Intake, field: str, max_bytes: int, clock: Clock) -> None:
        super().__init__(clock)
        self._intake = intake
        self._field = field
        self._max_bytes = max_bytes

    def add(self, num_bytes: int) -> None:
        """Say so before they are kept. Raises InvalidRequest if it gets too large, OutOfCapacity if all together do."""
        if self.num_bytes + num_bytes > self._max_bytes:
            bound = f"must be at most {self._max_bytes} bytes"
            raise InvalidRequest(self._field, f"more than {self._max_bytes} bytes", bound)
        self._intake.hold(num_bytes)
        super().add(num_bytes)
