"""The client, asynchronous. `services.client.sync` is the same on a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import IO, Any, Self, Unpack

import grpc
from opentelemetry.trace import TracerProvider

from services.client.answer_stream import AsyncAnswerStream, News
from services.client.connection import Connection, Deadline
from services.client.decode import read
from services.client.errors import InvalidRequest, NotFound
from services.client.options import (
    Metadata,
    PlanOptions,
    Prompt,
    TurnOptions,
    authorization,
    check_names,
    headers,
    make,
    prompt_message,
    sampling,
    timeout,
)
from services.client.retry import Retry
from services.client.types import Accepted, Answer, Catalog, Plan, Progress, Session
from services.client.upload import PIECE_BYTES, fits, pieces
from services.gateway.sla import NEW_SESSION
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.telemetry.tracing import Tracing

DEFAULT_TARGET = "127.0.0.1:50051"
KEY_BYTES = 24
PRELUDE = ("accepted", "prefill")
"""Events that may come again: before them and with them, nothing of the answer has been given out."""


class AsyncClient:
    """An open connection to a gateway. Use as an async context manager, or `close` it; all calls raise ClientError.

    >>> async with AsyncClient("127.0.0.1:50051", timeout_s=60) as client:
    ...     answer = await client.generate("The keeper's log ...", question="Who came?", max_tokens=8)
    ...     async with client.stream("Tell me more.", max_tokens=8) as stream:
    ...         async for token in stream:
    ...             text = token.text

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
        """Nothing is sent yet.

        Args:
            target: host:port, or another gRPC target such as dns:///gateways:50051.
            timeout_s: of each call, retries included, unless it says otherwise; None: none.
            api_key: an API key or a token, sent with each call; None: none. Over a network it needs `credentials`: else
                whoever listens has it, too.
            credentials: for TLS, from `tls(...)`; None: without.
            metadata: sent with each call.
            tracer_provider: OpenTelemetry's, for a span of each turn; None: none. Either way the service's spans are
                part of the trace that the caller's current span is in.
        """
        self._connection = Connection(target, credentials, (*authorization(api_key), *metadata), retry)
        self._timeout_s = timeout_s
        self._tracing = Tracing(tracer_provider)
        self.sessions = AsyncSessions(self._connection, timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End all calls and the connection."""
        await self._connection.close()

    async def wait_until_serving(self, timeout_s: float) -> None:
        """Return when the service says that it serves. Raises DeadlineExceeded after so many seconds."""
        await self._connection.wait_until_serving(timeout_s)

    async def generate(self, prompt: Prompt, *, session: str | None = None, **options: Unpack[TurnOptions]) -> Answer:
        """Run one turn; see `stream` and TurnOptions."""
        async with self.stream(prompt, session=session, **options) as stream:
            return await stream.answer()

    def stream(
        self, prompt: Prompt, *, session: str | None = None, **options: Unpack[TurnOptions]
    ) -> AsyncAnswerStream:
        """Run one turn, token by token. A prompt too long for one message is uploaded in pieces.

        Args:
            session: "new", or the id of one to continue; None: without. See `session` for one that takes care of ids.
        """
        return self._open_stream(prompt, session, options, lambda news: None)

    def _open_stream(
        self, prompt: Prompt, session: str | None, options: TurnOptions, tell: Callable[[News], None]
    ) -> AsyncAnswerStream:
        """As `stream`, with the options as a mapping; `tell` is told whatever their listeners are, and the answer."""
        check_names(options, TurnOptions)
        on_accepted, on_progress = options.get("on_accepted"), options.get("on_progress")

        def tell_all(news: News) -> None:
            tell(news)
            if isinstance(news, Accepted) and on_accepted is not None:
                on_accepted(news)
            elif isinstance(news, Progress) and on_progress is not None:
                on_progress(news)

        key = options.get("idempotency_key") or (secrets.token_urlsafe(KEY_BYTES) if session else None)
        return AsyncAnswerStream(
            self._events(prompt, {**options, "session": session, "idempotency_key": key}), tell_all
        )

    async def _events(self, prompt: Prompt, options: Mapping[str, Any]) -> AsyncGenerator[pb.GenerateResponse, None]:
        request = pb.GenerateRequest(prompt=prompt_message(prompt, options), sampling=sampling(options))
        stub, deadline = self._connection.stub, Deadline.after(timeout(options, self._timeout_s))

        def start(**call: Any) -> Any:
            if fits(request.prompt):
                return stub.Generate(request, **call)
            return stub.GenerateUpload(pieces(request), **call)

        with self._tracing.span_here("client.generate") as span:
            running = self._connection.stream(
                start,
                deadline,
                (*headers(options), *span.headers),
                is_prelude=lambda event: event.WhichOneof("event") in PRELUDE,
            )
            async with contextlib.aclosing(running) as events:
                async for event in events:
                    yield event

    async def plan(
        self,
        prompt: Prompt | None = None,
        *,
        prompt_tokens: int | None = None,
        session: str | None = None,
        **options: Unpack[PlanOptions],
    ) -> Plan:
        """Which recipe would be picked, and why, without running anything. Takes a prompt, or only its length."""
        check_names(options, PlanOptions)
        request = make(pb.PlanRequest, prompt_tokens=prompt_tokens, max_tokens=options.get("max_tokens"))
        if prompt is not None:
            request.prompt.CopyFrom(prompt_message(prompt, options))
        deadline = Deadline.after(timeout(options, self._timeout_s))
        given = headers({**options, "session": session})
        return read(Plan, await self._connection.unary(self._connection.stub.Plan, request, deadline, given))

    async def recipes(self, *, timeout_s: float | None = None) -> Catalog:
        """Recipes with their measured quality, SLA classes, and what is served."""
        deadline = Deadline.after(timeout({"timeout_s": timeout_s}, self._timeout_s))
        request = pb.ListRecipesRequest()
        return read(Catalog, await self._connection.unary(self._connection.stub.ListRecipes, request, deadline))

    def session(self, session_id: str | None = None, *, keep: bool = True, **options: Unpack[TurnOptions]) -> AsyncChat:
        """A conversation: turn after turn of one session.

        >>> async with client.session(sla="balanced", max_tokens=8, keep=False) as chat:
        ...     answer = await chat.ask("The keeper's log ...", question="Who came?")
        ...     again = await chat.ask("And when?")
        ...     other = await chat.fork()

        Args:
            session_id: of a session to continue; None: one that its first turn opens.
            keep: leave the session to its time to live; else it is deleted on leaving the context.
            options: of all its turns, unless they say otherwise.
        """
        check_names(options, TurnOptions)
        return AsyncChat(self, session_id, keep, options)


class AsyncChat:
    """One session, turn after turn; see `AsyncClient.session`. Use as an async context manager."""

    def __init__(self, client: AsyncClient, session_id: str | None, keep: bool, options: TurnOptions) -> None:
        self._client = client
        self._id = session_id
        self._opening_id: str | None = None
        self._keep = keep
        self._options = options

    @property
    def id(self) -> str | None:
        """The session's id; None before its first turn has been saved."""
        return self._id

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._keep:
            await self.delete()

    async def ask(self, prompt: Prompt, **options: Unpack[TurnOptions]) -> Answer:
        """Run the next turn. Its prompt is what is new."""
        async with self.stream(prompt, **options) as stream:
            return await stream.answer()

    def stream(self, prompt: Prompt, **options: Unpack[TurnOptions]) -> AsyncAnswerStream:
        """Run the next turn, token by token."""
        given: TurnOptions = {**self._options, **options}
        return self._client._open_stream(prompt, self._id or NEW_SESSION, given, self._note)

    async def fork(self, *, keep: bool = True) -> AsyncChat:
        """A copy of the conversation so far, as a session of its own. Raises InvalidRequest before its first turn."""
        if self._id is None:
            raise InvalidRequest("session is None: nothing has been saved yet that could be copied")
        copy = await self._client.sessions.fork(self._id)
        return AsyncChat(self._client, copy.session_id, keep, self._options)

    async def delete(self) -> None:
        """Forget the session, if there is one; another turn opens a new one."""
        session_id = self._id or self._opening_id
        self._id = self._opening_id = None
        if session_id is not None:
            with contextlib.suppress(NotFound):
                await self._client.sessions.delete(session_id)

    def _note(self, news: News) -> None:
        if isinstance(news, Accepted):
            self._opening_id = news.session_id
        elif isinstance(news, Answer) and news.session is not None and news.session.saved:
            self._id = news.session.session_id


class AsyncSessions:
    """Saved sessions of whoever asks. All calls raise ClientError, and take `timeout_s` instead of the client's."""

    def __init__(self, connection: Connection, timeout_s: float | None) -> None:
        self._connection = connection
        self._timeout_s = timeout_s

    async def list(self, limit: int = 100, *, timeout_s: float | None = None) -> tuple[Session, ...]:
        """Sessions, most recently updated first, 1..1,000 of them at most."""
        request = make(pb.ListSessionsRequest, limit=limit)
        answer = await self._connection.unary(self._connection.stub.ListSessions, request, self._deadline(timeout_s))
        return tuple(read(Session, session) for session in answer.sessions)

    async def get(self, session_id: str, *, timeout_s: float | None = None) -> Session:
        """One session. Raises NotFound."""
        request = make(pb.GetSessionRequest, session_id=session_id)
        call = self._connection.stub.GetSession
        return read(Session, await self._connection.unary(call, request, self._deadline(timeout_s)))

    async def delete(self, session_id: str, *, timeout_s: float | None = None) -> None:
        """Forget a session. Raises NotFound, but not for what an attempt before has deleted."""
        request = make(pb.DeleteSessionRequest, session_id=session_id)
        attempts = 0

        async def delete_once(message: Any, **call: Any) -> None:
            nonlocal attempts
            attempts += 1
            try:
                await self._connection.stub.DeleteSession(message, **call)
            except grpc.aio.AioRpcError as exc:
                if attempts == 1 or exc.code() is not grpc.StatusCode.NOT_FOUND:
                    raise

        await self._connection.unary(delete_once, request, self._deadline(timeout_s))

    async def fork(self, session_id: str, *, timeout_s: float | None = None) -> Session:
        """Copy a session; the new one. Is not tried again when its answer is lost: that would be a second copy."""
        request = make(pb.ForkSessionRequest, session_id=session_id)
        call, deadline = self._connection.stub.ForkSession, self._deadline(timeout_s)
        return read(Session, await self._connection.unary(call, request, deadline, repeat="refused"))

    async def export_to(self, file: IO[bytes], session_id: str, *, timeout_s: float | None = None) -> int:
        """Write a session, tokens and KV, to an open file; how many bytes. What came before an error is no session."""
        request, num_bytes = make(pb.ExportSessionRequest, session_id=session_id), 0

        def start(**call: Any) -> Any:
            return self._connection.stub.ExportSession(request, **call)

        def is_prelude(part: pb.ExportSessionResponse) -> bool:
            return bool(part.WhichOneof("part") != "chunk")

        running = self._connection.stream(start, self._deadline(timeout_s), is_prelude=is_prelude)
        async with contextlib.aclosing(running) as parts:
            async for part in parts:
                if part.WhichOneof("part") == "chunk":
                    num_bytes += await asyncio.to_thread(file.write, part.chunk)
        return num_bytes

    async def import_from(self, file: IO[bytes], *, timeout_s: float | None = None) -> Session:
        """Open a session from such a file, read from where it is to its end. Is sent once only."""

        async def chunks() -> AsyncIterator[pb.ImportSessionRequest]:
            while chunk := await asyncio.to_thread(file.read, PIECE_BYTES):
                yield pb.ImportSessionRequest(chunk=chunk)

        call, deadline = self._connection.stub.ImportSession, self._deadline(timeout_s)
        return read(Session, await self._connection.unary(call, chunks(), deadline, repeat="never"))

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline.after(timeout({"timeout_s": timeout_s}, self._timeout_s))
