"""Requests on their way in are bounded in size, in time and together; what they counted is free again afterwards."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from services.errors import ClientTooSlow
from services.gateway.limits import MAX_IMPORTS, MIN_RECEIVE_BYTES_PER_S, PAUSE_TIMEOUT_S
from services.gateway.receiving import Intake
from swaa_runtime.errors import InvalidRequest, OutOfCapacity
from tests.services.sessions.builders import asynchronous


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


async def silence() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


def test_one_request_is_bounded_before_it_is_kept() -> None:
    intake = Intake(1000)
    with intake.receiving("body", 10) as receiving:
        receiving.add(10)
        with pytest.raises(InvalidRequest, match="body is 'more than 10 bytes': must be at most 10 bytes"):
            receiving.add(1)
        assert (receiving.num_bytes, intake.held_bytes) == (10, 10)
    assert intake.held_bytes == 0


def test_all_requests_together_are_bounded() -> None:
    intake = Intake(15)
    with intake.receiving("body", 10) as first, intake.receiving("body", 10) as second:
        first.add(10)
        second.add(5)
        with pytest.raises(OutOfCapacity, match="15 bytes of requests are on their way in: at most 15"):
            second.add(1)
    with intake.receiving("body", 10) as third:
        third.add(10)
    assert intake.held_bytes == 0


def test_what_a_refused_request_counted_is_free_again() -> None:
    intake = Intake(15)
    with intake.receiving("body", 10) as receiving:
        receiving.add(9)
        with pytest.raises(InvalidRequest):
            receiving.add(9)
        assert intake.held_bytes == 9
    assert intake.held_bytes == 0


def test_imports_are_counted() -> None:
    intake = Intake(1)
    with contextlib.ExitStack() as running:
        for _ in range(MAX_IMPORTS):
            running.enter_context(intake.importing())
        with pytest.raises(OutOfCapacity, match=f"at most {MAX_IMPORTS}"):
            running.enter_context(intake.importing())
    assert intake.num_imports == 0


def test_a_drip_is_given_no_more_time_than_its_bytes_are_worth() -> None:
    clock = Clock()
    with Intake(1 << 20, clock).receiving("body", 1 << 20) as receiving:
        for _ in range(100):
            assert receiving.left_s() <= PAUSE_TIMEOUT_S
            receiving.add(MIN_RECEIVE_BYTES_PER_S)
            clock.now_s += 1.0
        assert receiving.left_s() == PAUSE_TIMEOUT_S, "as fast as it must be: it may go on"
        for second in range(30):
            assert receiving.left_s() == pytest.approx(PAUSE_TIMEOUT_S - second, abs=0.1)
            receiving.add(1)
            clock.now_s += 1.0


@asynchronous
async def test_what_comes_too_slowly_is_ended() -> None:
    clock = Clock()
    with Intake(1 << 20, clock).receiving("body", 1 << 20) as receiving:
        receiving.add(7)
        clock.now_s += PAUSE_TIMEOUT_S + 1
        with pytest.raises(ClientTooSlow, match="7 bytes of the request came in 31 s: no pause may be longer"):
            await receiving.next(silence())


@asynchronous
async def test_a_pause_ends_it_while_it_waits() -> None:
    clock = Clock()
    with Intake(1 << 20, clock).receiving("body", 1 << 20) as receiving:
        clock.now_s += PAUSE_TIMEOUT_S - 0.01
        with pytest.raises(ClientTooSlow):
            await receiving.next(silence())
