"""The engine's thread and its streams: readers that are slow, gone or late, and an engine that dies."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from services.replica import engine_loop
from services.replica.engine_loop import STREAM_LIMIT, OutputStream
from swaa_runtime.engine import Engine
from swaa_runtime.errors import EngineFailed, InvalidRequest, OutOfCapacity
from swaa_runtime.outputs import Finished, Output, TokenOutput
from swaa_runtime.request import FinishReason, Request, SamplingParams
from tests.swaa_runtime.builders import build_request, build_rig, engine_config, next_turn

from .builders import Rig, asynchronous, read_all, running_engine

LONG = SamplingParams(max_tokens=1000)


def tokens_of(outputs: list[Output]) -> list[int]:
    return [output.token_id for output in outputs if isinstance(output, TokenOutput)]


def finished(outputs: list[Output]) -> Finished:
    last = outputs[-1]
    assert isinstance(last, Finished)
    return last


async def at_rest(rig: Rig) -> None:
    """Wait until the engine has nothing to do, as all its requests are paused."""
    while await rig.loop.call(lambda engine: engine.has_work):  # noqa: ASYNC110 - the engine tells nobody
        await asyncio.sleep(0.01)


def alone(request: Request) -> list[int]:
    """The tokens that the same request gets from an engine of its own."""
    rig = build_rig()
    rig.add(request)
    rig.run()
    return [output.token_id for output in rig.tokens(request.request_id)]


@asynchronous
async def test_streams_carry_the_outputs_of_their_own_request() -> None:
    async with running_engine() as rig:
        streams = [rig.loop.submit(build_request(f"r{n}", 20 + n)) for n in range(4)]
        outputs = await asyncio.gather(*map(read_all, streams))
        assert await rig.used_blocks() == 0
    for n, mine in enumerate(outputs):
        assert {output.request_id for output in mine} == {f"r{n}"}
        assert tokens_of(mine) == alone(build_request(f"r{n}", 20 + n))
        assert finished(mine).reason is FinishReason.LENGTH


@asynchronous
async def test_cancelling_frees_the_memory_and_ends_the_stream() -> None:
    async with running_engine() as rig:
        stream = rig.loop.submit(build_request("r", 20, sampling=LONG))
        await stream.get()
        assert await rig.used_blocks() > 0
        rig.loop.cancel("r")
        assert await rig.used_blocks() == 0
        assert finished(await read_all(stream)).reason is FinishReason.CANCELLED
        rig.loop.cancel("r")  # again, and one that never was: nothing happens
        rig.loop.cancel("nobody")
        assert tokens_of(await read_all(rig.loop.submit(build_request("s"))))


@asynchronous
async def test_a_slow_reader_is_paused_and_the_others_go_on() -> None:
    async with running_engine() as rig:
        sampling = SamplingParams(max_tokens=3 * STREAM_LIMIT)
        slow = rig.loop.submit(build_request("slow", 20, sampling=sampling))
        fast = rig.loop.submit(build_request("fast", 20, sampling=sampling))
        assert len(tokens_of(await read_all(fast))) == 3 * STREAM_LIMIT

        def state(engine: Engine) -> tuple[bool, int]:
            request = next((r for r in engine.scheduler.requests if r.request_id == "slow"), None)
            assert request is not None
            return request.paused, request.num_generated_tokens

        paused, generated = await rig.loop.call(state)
        assert paused
        assert STREAM_LIMIT // 2 <= generated <= STREAM_LIMIT
        await asyncio.sleep(0.1)
        assert await rig.loop.call(state) == (True, generated), "it stands still while nobody reads"

        outputs = await read_all(slow)
        assert tokens_of(outputs) == alone(build_request("slow", 20, sampling=sampling))
        assert await rig.used_blocks() == 0


@asynchronous
async def test_an_engine_whose_readers_are_all_slow_rests_and_still_takes_requests() -> None:
    async with running_engine() as rig:
        slow = rig.loop.submit(build_request("slow", 20, sampling=LONG))
        await at_rest(rig)
        assert tokens_of(await read_all(rig.loop.submit(build_request("r"))))
        rig.loop.cancel("slow")
        assert finished(await read_all(slow)).reason is FinishReason.CANCELLED


@asynchronous
async def test_what_is_refused_is_told_by_the_stream_and_hurts_nobody() -> None:
    async with running_engine(engine_config(num_blocks=40)) as rig:
        stream = rig.loop.submit(build_request("r", 20, sampling=SamplingParams(max_tokens=40)))
        with pytest.raises(OutOfCapacity, match="the pool has 39"):
            await rig.loop.submit(build_request("big", 500)).get()
        with pytest.raises(InvalidRequest, match="request_id is 'r': is in use"):
            await rig.loop.submit(build_request("r")).get()
        with pytest.raises(InvalidRequest, match=r"token_ids is 64: must be in 0\.\.63"):
            await rig.loop.submit(build_request("odd", [64])).get()
        assert len(tokens_of(await read_all(stream))) == 40


@asynchronous
async def test_a_deadline_ends_a_request_that_waits_behind_one_that_stands_still() -> None:
    async with running_engine(engine_config(max_running=1)) as rig:
        slow = rig.loop.submit(build_request("slow", 20, sampling=LONG))
        await at_rest(rig)
        waiting = rig.loop.submit(build_request("r", deadline_s=time.monotonic() + 0.2))
        outputs = await read_all(waiting)
        assert finished(outputs).reason is FinishReason.DEADLINE
        assert tokens_of(outputs) == []
        rig.loop.cancel("slow")
        await read_all(slow)


@asynchronous
async def test_an_engine_that_dies_fails_all_requests_and_all_later_ones() -> None:
    async with running_engine() as rig:
        streams = [rig.loop.submit(build_request(f"r{n}", 20, sampling=LONG)) for n in range(3)]
        for stream in streams:
            await stream.get()

        def fail() -> None:
            raise RuntimeError("a bit fell over")

        rig.runner.before_step = fail
        for stream in streams:
            with pytest.raises(EngineFailed, match="the engine failed: RuntimeError: a bit fell over"):
                await read_all(stream)
        assert rig.loop.failure is not None
        assert rig.loop.stuck_s() == 0.0
        with pytest.raises(EngineFailed, match="a bit fell over"):
            await rig.loop.submit(build_request("later")).get()
        with pytest.raises(EngineFailed, match="a bit fell over"):
            await rig.loop.call(lambda engine: engine.has_work)
        rig.loop.cancel("r0")  # nothing left to do, and nothing to raise


@asynchronous
async def test_closing_ends_running_and_later_requests() -> None:
    async with running_engine() as rig:
        stream = rig.loop.submit(build_request("r", 20, sampling=LONG))
        await stream.get()
        await asyncio.to_thread(rig.loop.close)
        with pytest.raises(EngineFailed, match="shut down"):
            await read_all(stream)
        with pytest.raises(EngineFailed, match="shut down"):
            await rig.loop.submit(build_request("later")).get()
        assert not [thread for thread in threading.enumerate() if thread.name == "swaa-engine"]


class Hang:
    """Before a step: tells that it has come there, and stays until it may go."""

    def __init__(self) -> None:
        self.entered, self.go = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        assert self.go.wait(30)


@asynchronous
async def test_closing_does_not_wait_for_a_step_that_hangs() -> None:
    hang = Hang()
    async with running_engine() as rig:
        rig.runner.before_step = hang
        stream = rig.loop.submit(build_request("r"))
        assert await asyncio.to_thread(hang.entered.wait, 30)
        asked = asyncio.create_task(rig.loop.call(lambda engine: engine.has_work))
        await asyncio.sleep(0)  # it is asked for now, in the midst of the step
        await asyncio.to_thread(rig.loop.close, 0.1)
        for told in (stream.get(), asked, rig.loop.submit(build_request("later")).get()):
            with pytest.raises(EngineFailed, match="shut down in the midst of a step"):
                await told
        hang.go.set()  # then the thread ends as well, as leaving this waits for it
    assert not [thread for thread in threading.enumerate() if thread.name == "swaa-engine"]


@asynchronous
async def test_a_call_runs_between_steps_and_its_error_is_the_callers() -> None:
    async with running_engine() as rig:
        assert await rig.loop.call(lambda engine: engine) is rig.engine
        assert await rig.loop.call(lambda _: threading.current_thread().name) == "swaa-engine"
        with pytest.raises(ZeroDivisionError):
            await rig.loop.call(lambda _: 1 // 0)
        assert tokens_of(await read_all(rig.loop.submit(build_request("r"))))


@asynchronous
async def test_a_step_that_hangs_is_seen_from_outside() -> None:
    hang = Hang()
    async with running_engine() as rig:
        assert rig.loop.stuck_s() == 0.0
        rig.runner.before_step = hang
        stream = rig.loop.submit(build_request("r"))
        assert await asyncio.to_thread(hang.entered.wait, 30)
        await asyncio.sleep(0.1)
        assert rig.loop.stuck_s() >= 0.1
        rig.loop.check_alive()
        with pytest.raises(EngineFailed, match="stuck"):
            rig.loop.check_alive(stuck_s=0.1)
        hang.go.set()
        await read_all(stream)
        await rig.used_blocks()
        assert rig.loop.stuck_s() == 0.0
        rig.loop.check_alive(stuck_s=0.1)
    with pytest.raises(EngineFailed, match="shut down"):
        rig.loop.check_alive()


class Held:
    """An engine whose thread stands still at each boundary between the layers of a long step, which has two."""

    def __init__(self, rig: Rig) -> None:
        self._at, self._go = threading.Semaphore(0), threading.Semaphore(0)
        self.dies = False
        rig.runner.between_layers = self._hold

    def _hold(self) -> None:
        self._at.release()
        assert self._go.acquire(timeout=30)
        if self.dies:
            raise RuntimeError("a bit fell over")

    async def at_boundary(self) -> None:
        """Wait until it stands at the next."""
        assert await asyncio.to_thread(self._at.acquire, timeout=30)

    def go_on(self) -> None:
        """Up to the next."""
        self._go.release()


INTERRUPTIBLE = engine_config(max_step_tokens=64, interrupt_tokens=16)
TWO_STEPS = 128


@asynchronous
async def test_a_first_token_is_with_its_reader_before_a_long_step_goes_on() -> None:
    async with running_engine(INTERRUPTIBLE) as rig:
        held = Held(rig)
        long = rig.loop.submit(build_request("long", TWO_STEPS, sampling=SamplingParams(max_tokens=1)))
        await held.at_boundary()
        stream = rig.loop.submit(build_request("r", 10))
        held.go_on()
        await held.at_boundary()
        outputs = [await stream.get(), await stream.get()]
        assert len(tokens_of(outputs)) == 1
        assert rig.engine._in_flight is not None, "the long step has not ended"
        rig.runner.between_layers = lambda: None
        held.go_on()
        assert len(tokens_of(await read_all(long))) == 1
        outputs += await read_all(stream)
        assert await rig.used_blocks() == 0
    assert tokens_of(outputs) == alone(build_request("r", 10))


@asynchronous
async def test_what_may_not_be_done_in_a_step_waits_for_its_end_and_newcomers_overtake_it() -> None:
    async with running_engine(INTERRUPTIBLE) as rig:
        held = Held(rig)
        long = rig.loop.submit(build_request("long", TWO_STEPS))
        await held.at_boundary()
        first = rig.loop.submit(build_request("first", 8, sampling=LONG))
        rig.loop.cancel("first")
        rig.loop.cancel("long")
        asking = asyncio.create_task(rig.loop.call(lambda engine: engine._in_flight))
        await asyncio.sleep(0)
        second = rig.loop.submit(build_request("second", 8))
        held.go_on()
        await held.at_boundary()
        assert len(tokens_of([await first.get(), await first.get()])) == 1
        tokens = tokens_of([await second.get(), await second.get()])
        assert len(tokens) == 1, "while the long step is in flight"
        rig.runner.between_layers = lambda: None
        held.go_on()
        outputs = await read_all(first)
        assert (tokens_of(outputs), finished(outputs).reason) == ([], FinishReason.CANCELLED)
        assert finished(await read_all(long)).num_computed_tokens == 64, "the step ran to its end"
        assert await asking is None, "it was run after the step"
        assert tokens + tokens_of(await read_all(second)) == alone(build_request("second", 8))
        assert await rig.used_blocks() == 0


@asynchronous
async def test_a_next_turn_goes_on_from_memory_in_the_midst_of_a_step() -> None:
    async with running_engine(INTERRUPTIBLE) as rig:
        past = build_request("past", 10, continues=True)
        await read_all(rig.loop.submit(past))
        held = Held(rig)
        long = rig.loop.submit(build_request("long", TWO_STEPS))
        await held.at_boundary()
        resuming = asyncio.create_task(rig.loop.resume(next_turn("next", past, [1, 2, 3]), "past"))
        await asyncio.sleep(0)
        held.go_on()
        await held.at_boundary()
        stream = await resuming
        assert stream is not None
        assert len(tokens_of([await stream.get(), await stream.get()])) == 1
        rig.runner.between_layers = lambda: None
        held.go_on()
        await asyncio.gather(read_all(stream), read_all(long))


@pytest.mark.parametrize("dies", [False, True])
@asynchronous
async def test_what_was_put_off_to_the_end_of_a_step_is_told_if_there_is_none_after_it(dies: bool) -> None:
    async with running_engine(INTERRUPTIBLE) as rig:
        held = Held(rig)
        long = rig.loop.submit(build_request("long", TWO_STEPS))
        await held.at_boundary()
        closing = None if dies else asyncio.create_task(asyncio.to_thread(rig.loop.close))
        while not dies and rig.loop._commands.empty():  # noqa: ASYNC110 - until it has been told to
            await asyncio.sleep(0.01)
        asking = asyncio.create_task(rig.loop.call(lambda engine: engine))
        await asyncio.sleep(0)
        held.go_on()
        await held.at_boundary()
        held.dies = dies
        held.go_on()
        with pytest.raises(EngineFailed, match="fell over" if dies else "shut down"):
            await asking
        with pytest.raises(EngineFailed):
            await read_all(long)
        if closing is not None:
            await closing


def test_an_output_for_a_reader_whose_loop_is_closed_is_dropped() -> None:
    async def make() -> OutputStream:
        return OutputStream(resume=lambda: None)

    stream = asyncio.run(make())
    assert stream.put(EngineFailed("too late")), "and its request is to be paused"


@asynchronous
async def test_a_stream_asks_for_a_pause_and_a_resume_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_loop, "STREAM_LIMIT", 4)
    resumed: list[int] = []
    stream = OutputStream(resume=lambda: resumed.append(1))
    output = TokenOutput("r", 1, "x", None)
    assert [stream.put(output) for _ in range(5)] == [False, False, False, True, True]
    for expected in (0, 0, 1, 1, 1):
        await stream.get()
        assert len(resumed) == expected
    assert not stream.put(output)


@pytest.mark.parametrize("dies", [False, True])
@asynchronous
async def test_who_asks_and_goes_away_does_no_harm(dies: bool) -> None:
    async with running_engine() as rig:
        held, entered = threading.Event(), threading.Event()

        def hold(engine: Engine) -> None:
            entered.set()
            held.wait()

        holding = asyncio.create_task(rig.loop.call(hold))
        await asyncio.to_thread(entered.wait)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(rig.loop.call(lambda engine: engine), 0.01)
        closing = asyncio.create_task(asyncio.to_thread(rig.loop.close)) if dies else None
        held.set()
        await holding
        if closing is None:
            assert await rig.loop.call(lambda engine: engine) is rig.engine
        else:
            await closing
            assert rig.loop.failure is not None
            assert "shut down" in str(rig.loop.failure)
