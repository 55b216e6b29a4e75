"""The client for programs without an event loop: the asynchronous one, on an event loop of its own in a thread.

Every method here is one of `services.client.aio`, made blocking: signatures, defaults and behaviour are theirs.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

import grpc
from opentelemetry.trace import TracerProvider

from services.client.aio import DEFAULT_TARGET, AsyncChat, AsyncClient, AsyncSessions
from services.client.answer_stream import AsyncAnswerStream
from services.client.options import Metadata
from services.client.retry import Retry
from services.client.types import Accepted, Progress, Token

A = TypeVar("A")
R = TypeVar("R")
F = TypeVar("F", bound="Blocking[Any]")
P = ParamSpec("P")


class LoopThread:
    """An event loop in a thread of its own, from the first call on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """The coroutine's result. Interrupted (by Ctrl-C, say), it is cancelled. Raises RuntimeError in the thread."""
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("a listener must not call the client that called it")
        future = asyncio.run_coroutine_threadsafe(work, self._started())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the thread, if it runs. A later `run` starts another."""
        with self._lock:
            if self._loop is None or self._thread is None:
                return
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = self._thread = None

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="swaa-client", daemon=True)
                self._thread.start()
            return self._loop


class Blocking(Generic[A]):
    """What is asynchronous inside, and the thread that runs it."""

    def __init__(self, inner: A, thread: LoopThread) -> None:
        self._inner = inner
        self._thread = thread


def blocking(method: Callable[Concatenate[A, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Blocking[A], P], R]:
    """A coroutine method as one that blocks."""

    @functools.wraps(method)
    def call(self: Blocking[A], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._thread.run(method(self._inner, *args, **kwargs))

    return call


def opening(
    method: Callable[Concatenate[A, P], R], kind: Callable[[R, LoopThread], F]
) -> Callable[Concatenate[Blocking[A], P], F]:
    """A method that only makes something asynchronous, as one that makes its blocking twin."""

    @functools.wraps(method)
    def call(self: Blocking[A], /, *args: P.args, **kwargs: P.kwargs) -> F:
        return kind(method(self._inner, *args, **kwargs), self._thread)

    return call


class AnswerStream(Blocking[AsyncAnswerStream]):
    """Tokens of an answer; see AsyncAnswerStream."""

    answer = blocking(AsyncAnswerStream.answer)
    close = blocking(AsyncAnswerStream.close)

    @property
    def accepted(self) -> Accepted | None:
        """How the service took the request, as soon as that is known."""
        return self._inner.accepted

    @property
    def progress(self) -> Progress | None:
        """How far the prompt is, the last that was told."""
        return self._inner.progress

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        try:
            return self._thread.run(self._inner.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Sessions(Blocking[AsyncSessions]):
    """Saved sessions; see AsyncSessions."""

    list = blocking(AsyncSessions.list)
    get = blocking(AsyncSessions.get)
    delete = blocking(AsyncSessions.delete)
    fork = blocking(AsyncSessions.fork)
    export_to = blocking(AsyncSessions.export_to)
    import_from = blocking(AsyncSessions.import_from)


class Chat(Blocking[AsyncChat]):
    """One session, turn after turn; see AsyncChat and `Client.session`."""

    ask = blocking(AsyncChat.ask)
    stream = opening(AsyncChat.stream, AnswerStream)
    delete = blocking(AsyncChat.delete)

    @property
    def id(self) -> str | None:
        """The session's id; None before its first turn has been saved."""
        return self._inner.id

    def fork(self, *, keep: bool = True) -> Chat:
        """See AsyncChat."""
        return Chat(self._thread.run(self._inner.fork(keep=keep)), self._thread)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.run(self._inner.__aexit__(kind, error, trace))


class Client(Blocking[AsyncClient]):
    """An open connection to a gateway. Use as a context manager, or `close` it; all calls raise ClientError.

    >>> with Client("127.0.0.1:50051", timeout_s=60) as client:
    ...     answer = client.generate("The keeper's log ...", question="Who came?", max_tokens=8)
    ...     for token in client.stream("Tell me more.", max_tokens=8):
    ...         text = token.text
    ...     with client.session(sla="balanced", max_tokens=8, keep=False) as chat:
    ...         answer = chat.ask("The keeper's log ...", question="Who came?")
    ...         again = chat.ask("And when?")

    Safe to use from several threads. See AsyncClient for what everything means.

    Attributes:
        sessions: what is saved.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout_s: float | None = None,
        api_key: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Metadata = (),
        retry: Retry = Retry(),  # noqa: B008 - frozen
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        """See AsyncClient."""
        inner = AsyncClient(
            target,
            timeout_s=timeout_s,
            api_key=api_key,
            credentials=credentials,
            metadata=metadata,
            retry=retry,
            tracer_provider=tracer_provider,
        )
        super().__init__(inner, LoopThread())
        self.sessions = Sessions(inner.sessions, self._thread)

    wait_until_serving = blocking(AsyncClient.wait_until_serving)
    generate = blocking(AsyncClient.generate)
    stream = opening(AsyncClient.stream, AnswerStream)
    plan = blocking(AsyncClient.plan)
    recipes = blocking(AsyncClient.recipes)
    session = opening(AsyncClient.session, Chat)

    def close(self) -> None:
        """End all calls, the connection and the thread."""
        self._thread.run(self._inner.close())
        self._thread.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
