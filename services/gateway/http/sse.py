"""Server-sent events: a response that begins when there is something to say, or when nothing has come for a while."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.types import Send

FIRST_BEAT_S = 1.0
"""As long as this the response waits for its first event, so that a refusal can still have a status of its own."""

BEAT_S = 10.0
"""How often a silent stream says that it is alive: what is between gateway and client may close silent connections."""


class EventStream:
    """Writes events. `send` waits while the client reads too slowly, and so does everybody who writes here."""

    def __init__(self, send: Send, headers: Mapping[str, str]) -> None:
        self._send = send
        self._headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", **headers}
        self._held = b""
        self._silent = True
        self._ended = False
        self._writing = asyncio.Lock()
        self.started = False

    def hold(self, data: Mapping[str, Any]) -> None:
        """Say this before what is written next."""
        self._held += _event(data)

    async def write(self, data: Mapping[str, Any]) -> None:
        """An event."""
        await self._write(_event(data))

    async def comment(self, text: str) -> None:
        """A line that clients ignore."""
        await self._write(f": {text}\n\n".encode())

    async def end(self, last: bytes = b"data: [DONE]\n\n") -> None:
        """The end of the stream."""
        self._ended = True
        await self._write(last, more=False)

    async def fail(self, error: Mapping[str, Any]) -> None:
        """An error in mid-stream, and the end: without [DONE], as this is not a whole answer."""
        await self.end(b"event: error\n" + _event(error))

    @contextlib.asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Say something now and then, as long as nothing else is said in the body."""
        beats = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            beats.cancel()
            await asyncio.gather(beats, return_exceptions=True)

    async def _beat(self) -> None:
        pause_s = FIRST_BEAT_S
        while not self._ended:
            self._silent = True
            await asyncio.sleep(pause_s)
            pause_s = BEAT_S
            if self._silent and not self._ended:
                await self.comment("waiting")

    async def _write(self, data: bytes, more: bool = True) -> None:
        self._silent = False
        async with self._writing:  # the beats are another task's
            if not self.started:
                self.started = True
                headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self._headers.items()]
                await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            held, self._held = self._held, b""
            await self._send({"type": "http.response.body", "body": held + data, "more_body": more})


def _event(data: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()
