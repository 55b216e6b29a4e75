"""One turn as it comes: accepted, progress, tokens, and the whole answer at its end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Self

from services.client.decode import answer_of, read
from services.client.errors import ServerError
from services.client.types import Accepted, Answer, Progress, Token
from services.pb.swaa.v1 import long_context_pb2 as pb

News = Accepted | Progress | Answer
"""What listeners are told."""


class AsyncAnswerStream:
    """Tokens of an answer. Iterate it, or ask for the whole `answer`; closing it early ends the turn.

    Nothing is sent before the first token is asked for. Raises ClientError where it is read.

    Attributes:
        accepted: how the service took the request, as soon as that is known.
        progress: how far the prompt is, the last that was told.
    """

    def __init__(self, events: AsyncGenerator[pb.GenerateResponse, None], tell: Callable[[News], None]) -> None:
        self.accepted: Accepted | None = None
        self.progress: Progress | None = None
        self._events = events
        self._tell = tell
        self._tokens: list[Token] = []
        self._answer: Answer | None = None
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Token:
        try:
            token = await self._next()
        except BaseException:
            await self.close()
            raise
        if token is None:
            raise StopAsyncIteration
        return token

    async def answer(self) -> Answer:
        """The whole answer; reads what has not been read yet."""
        async for _ in self:
            pass
        if self._answer is None:
            raise ServerError("the stream was closed before its end")
        return self._answer

    async def close(self) -> None:
        """End the turn if it runs still; the service frees what it holds."""
        self._closed = True
        await self._events.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _next(self) -> Token | None:
        async for event in self._events:
            match event.WhichOneof("event"):
                case "accepted":
                    self.accepted = read(Accepted, event.accepted)
                    self._tell(self.accepted)
                case "prefill":
                    self.progress = read(Progress, event.prefill)
                    self._tell(self.progress)
                case "token":
                    return self._add(read(Token, event.token))
                case "finish":
                    return await self._finish(event.finish)
        if self._answer is None and not self._closed:
            raise ServerError("the stream ended without its last message")
        return None

    async def _finish(self, finish: pb.Finish) -> Token | None:
        held_back = self._add(Token(None, finish.text, None)) if finish.text else None
        if self.accepted is None:
            raise ServerError("the stream did not start with how the request was accepted")
        self._answer = answer_of(self.accepted, self._tokens, finish)
        await self.close()
        self._tell(self._answer)
        return held_back

    def _add(self, token: Token) -> Token:
        self._tokens.append(token)
        return token
