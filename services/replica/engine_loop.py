"""The one thread that touches the engine. Commands go in by a queue, outputs come out by one stream per request.

Commands are run in order, between steps, and those that touch nothing of a step also between the layers of a long one,
so that a short prompt need not wait for its end. A request whose stream is full (its reader is slow) is paused in the
engine until the reader catches up; others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, TypeVar

from swaa_runtime.engine import Engine
from swaa_runtime.errors import EngineFailed, SwaaError
from swaa_runtime.kv_cache.restore import Restore
from swaa_runtime.kv_cache.slices import KVSlice, SliceKey
from swaa_runtime.load import EngineLoad
from swaa_runtime.outputs import Finished, Output
from swaa_runtime.request import Request

T = TypeVar("T")
InStep = Literal["no", "in order", "at once"]

logger = logging.getLogger(__name__)

STREAM_LIMIT = 64
"""Outputs a reader may lag behind before its request is paused."""

IDLE_WAIT_S = 0.02

STUCK_S = 120.0
"""A step that takes longer than this is not a slow step."""

CLOSE_S = 10.0
"""What a step that runs may take yet when the engine is closed."""


class OutputStream:
    """Outputs of one request, from the engine's thread to one asyncio reader."""

    def __init__(self, resume: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Output | SwaaError] = asyncio.Queue()
        self._resume = resume
        self._lock = threading.Lock()
        self._pending = 0
        self._full = False

    def put(self, item: Output | SwaaError) -> bool:
        """Engine's thread: hand over one output. True if the request should be paused now."""
        with self._lock:
            self._pending += 1
            self._full = self._full or self._pending >= STREAM_LIMIT
            full = self._full
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError:  # the reader's event loop is closed: the process is going down
            return True
        return full

    async def get(self) -> Output:
        """Reader: the next output. Raises the error that ended the request."""
        item = await self._queue.get()
        with self._lock:
            self._pending -= 1
            resume = self._full and self._pending <= STREAM_LIMIT // 2
            if resume:
                self._full = False
        if resume:
            self._resume()
        if isinstance(item, SwaaError):
            raise item
        return item


@dataclass(frozen=True, slots=True)
class _Command:
    """Something to do between two steps, and what to tell its caller if the engine died before.

    Attributes:
        in_step: whether it may be done between the layers of a step, too, as it touches nothing that the step uses. "at
            once" if it begins a request, to which nothing earlier can refer: it overtakes what waits for the end.
    """

    run: Callable[[], None]
    fail: Callable[[EngineFailed], object] = lambda _: None
    in_step: InStep = "no"


class EngineLoop:
    """Runs an engine in a thread of its own until `close`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._put_off: deque[_Command | None] = deque()  # taken in the midst of a step, to be run after it
        self._streams: dict[str, OutputStream] = {}
        self._thread = threading.Thread(target=self._run, name="swaa-engine", daemon=True)
        self._failure: EngineFailed | None = None
        self._failure_lock = threading.Lock()
        self._busy_since_s: float | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """End all requests, then the thread. Returns when it is gone, or is in one step for `timeout_s` more.

        That thread is left to itself: it does not keep the process from ending.
        """
        self._commands.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._fail(EngineFailed("the engine was shut down in the midst of a step"))
            self._commands.put(None)  # should the step end after all

    @property
    def failure(self) -> EngineFailed | None:
        """Why the engine stopped, if it did."""
        return self._failure

    @property
    def load(self) -> EngineLoad:
        """What the engine has to do; see `Engine.load`."""
        return self._engine.load

    def stuck_s(self) -> float:
        """How long the step that is running now has taken; 0 when none is."""
        since = self._busy_since_s
        return 0.0 if since is None else time.monotonic() - since

    def check_alive(self, stuck_s: float = STUCK_S) -> None:
        """Raise EngineFailed if the engine has stopped, cannot go on, or has been in a step for `stuck_s` seconds."""
        if self._failure is not None:
            raise self._failure
        self._engine.runner.check()
        if (running_s := self.stuck_s()) >= stuck_s:
            raise EngineFailed(f"the engine is stuck: its step has been running for {running_s:.0f} s")

    def submit(
        self, request: Request, restore: Restore | None = None, saved_keys: Collection[SliceKey] = ()
    ) -> OutputStream:
        """Queue a request; refusals (OutOfCapacity, InvalidRequest) come through the stream. Call on the event loop."""
        stream = self._stream(request.request_id)

        def add() -> None:
            try:
                self._engine.add(request, restore, saved_keys)
            except SwaaError as exc:
                stream.put(exc)
                return
            self._streams[request.request_id] = stream

        self._post(_Command(add, fail=stream.put, in_step="at once"))
        return stream

    async def resume(
        self, request: Request, parked_id: str, saved_keys: Collection[SliceKey] = ()
    ) -> OutputStream | None:
        """Run a request from a state in the pool. None if that is gone or there is no room now.

        Raises as `Engine.add` does. Cancel the request if this is cancelled: it may be running by then.
        """
        stream = self._stream(request.request_id)

        def resume(engine: Engine) -> bool:
            if not engine.resume(request, parked_id, saved_keys):
                return False
            self._streams[request.request_id] = stream
            return True

        return stream if await self._call(resume, in_step="at once") else None

    def is_parked(self, request_id: str) -> bool:
        """Whether a request's state is in the pool still; a moment later it may not be."""
        return request_id in self._engine.parked

    async def place(self, request_id: str, slices: Iterable[KVSlice]) -> None:
        """Bring slices of a state that is restored; returns when they are the engine's."""
        await self._call(lambda engine: engine.place(request_id, slices), in_step="in order")

    async def abandon_restore(self, request_id: str) -> None:
        """See `Engine.abandon_restore`."""
        await self.call(lambda engine: engine.abandon_restore(request_id))

    def confirm_saved(self, request_id: str, keys: Collection[SliceKey], lost: Collection[SliceKey] = ()) -> None:
        """See `Engine.confirm_saved`."""
        self._post(_Command(lambda: self._engine.confirm_saved(request_id, keys, lost), in_step="in order"))

    async def export_parked(self, request_id: str, keys: Collection[SliceKey]) -> list[KVSlice] | None:
        """See `Engine.export_parked`. Others' tokens wait meanwhile."""
        return await self.call(lambda engine: engine.export_parked(request_id, keys))

    def drop_parked(self, request_id: str) -> None:
        """See `Engine.drop_parked`."""
        self._post(_Command(lambda: self._engine.drop_parked(request_id)))

    def cancel(self, request_id: str) -> None:
        """End a request: its blocks are free before the next step. Nothing happens if it has ended."""
        self._post(_Command(lambda: self._dispatch(self._engine.cancel(request_id))))

    async def call(self, function: Callable[[Engine], T]) -> T:
        """Run a function on the engine between two steps, on its thread, and return its result."""
        return await self._call(function)

    async def _call(self, function: Callable[[Engine], T], in_step: InStep = "no") -> T:
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return  # whoever asked has gone
            try:
                future.set_result(function(self._engine))
            except Exception as exc:
                future.set_exception(exc)

        def fail(failure: EngineFailed) -> None:
            if future.set_running_or_notify_cancel():
                future.set_exception(failure)

        self._post(_Command(run, fail, in_step))
        return await asyncio.wrap_future(future)

    def _stream(self, request_id: str) -> OutputStream:
        resume = _Command(lambda: self._engine.set_paused(request_id, False), in_step="in order")
        return OutputStream(lambda: self._post(resume))

    def _post(self, command: _Command) -> None:
        with self._failure_lock:
            if self._failure is None:
                self._commands.put(command)
                return
        command.fail(self._failure)

    def _run(self) -> None:
        try:
            idle = True
            while self._take_commands(idle):
                self._busy_since_s = time.monotonic()
                outputs = self._engine.step(self._between_layers)
                self._busy_since_s = None
                self._dispatch(outputs)
                idle = not outputs and not self._engine.moves_states  # every step that ran a token has an output
            self._fail(EngineFailed("the engine was shut down"))
        except Exception as exc:
            logger.exception("engine failed")
            self._fail(EngineFailed(f"the engine failed: {type(exc).__name__}: {exc}"))

    def _take_commands(self, idle: bool) -> bool:
        """Run all commands that wait; wait for one when there is nothing else to do. False to stop."""
        while True:
            try:
                if self._put_off:
                    command = self._put_off.popleft()
                elif not self._engine.has_work:
                    command = self._commands.get()
                elif idle:  # nothing can run until a reader catches up or a request ends: look again soon
                    command = self._commands.get(timeout=IDLE_WAIT_S)
                else:
                    command = self._commands.get_nowait()
            except queue.Empty:
                return True
            if command is None:
                return False
            command.run()
            idle = False

    def _between_layers(self) -> None:
        """In the midst of a step: run the commands that may be, and let out newcomers' first tokens."""
        with contextlib.suppress(queue.Empty):
            while True:
                command = self._commands.get_nowait()
                if command is None or command.in_step == "no" or (self._put_off and command.in_step == "in order"):
                    self._put_off.append(command)
                else:
                    command.run()
        self._dispatch(self._engine.interrupt())

    def _dispatch(self, outputs: list[Output]) -> None:
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None and stream.put(output):
                self._engine.set_paused(output.request_id, True)
            if isinstance(output, Finished):
                self._streams.pop(output.request_id, None)

    def _fail(self, failure: EngineFailed) -> None:
        with self._failure_lock:
            self._failure = failure
        self._busy_since_s = None
        for stream in list(self._streams.values()):
            stream.put(failure)
        self._streams.clear()
        with contextlib.suppress(queue.Empty):
            while True:  # posted before the failure was known
                command = self._put_off.popleft() if self._put_off else self._commands.get_nowait()
                if command is not None:
                    command.fail(failure)
