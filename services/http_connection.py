"""A connection of the HTTP server that does not wait for ever, and a bound on the size of a request's head.

uvicorn waits for a first request, for a slow one and for a reader as long as the client likes.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEAD_BYTES = 16 << 10
"""Of a request's line and headers."""

HEAD_TIMEOUT_S = 10.0
"""How long a connection may take for the head of its next request; without a byte of it uvicorn closes it after 5 s."""

READ_TIMEOUT_S = 60.0
"""How long what is written may stay unread, while there is no room for more. Then the connection is cut off."""


class ImpatientProtocol(H11Protocol):
    """uvicorn's connection, with a timer for what the client has to do next: send a head, or read."""

    head_timeout_s = HEAD_TIMEOUT_S
    read_timeout_s = READ_TIMEOUT_S

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._within(self.head_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop()

    def send_400_response(self, msg: str) -> None:
        """See uvicorn. Bytes that break a request end it, too: there is one answer, and none in the middle of it."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
                return
        super().send_400_response(msg)

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        super().pause_writing()
        self._within(self.read_timeout_s)

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        super().resume_writing()
        self._stop()
        if self.cycle is None or self.cycle.response_complete:
            self._within(self.head_timeout_s)

    def on_response_complete(self) -> None:
        """See uvicorn. The next request may be here already, or the connection closing: then what is unread is lost."""
        before = self.cycle
        if not self.flow.write_paused:
            self._within(self.head_timeout_s)
        super().on_response_complete()
        if self.cycle is not before:
            self._stop()

    def _within(self, timeout_s: float) -> None:
        self._stop()
        self._timer = self.loop.call_later(timeout_s, self.transport.abort)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def bounding_heads(app: ASGIApp) -> ASGIApp:
    """The application, for requests whose head is small enough; others are answered with 431.

    The parser bounds heads that come in pieces, not those that come whole.
    """

    async def bounded(scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope.get("headers", ())
        num_bytes = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
        num_bytes += sum(len(name) + len(value) + 4 for name, value in headers)
        if num_bytes <= MAX_HEAD_BYTES:
            await app(scope, receive, send)
            return
        body = f"the request's head is {num_bytes} bytes: must be at most {MAX_HEAD_BYTES} bytes".encode()
        told = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 431, "headers": told})
        await send({"type": "http.response.body", "body": body})

    return bounded
