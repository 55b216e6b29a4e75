"""An ASGI application on a port, in the event loop of whoever starts it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Generator

import uvicorn
from starlette.types import ASGIApp

from services.http_connection import MAX_HEAD_BYTES, ImpatientProtocol, bounding_heads
from swaa_runtime.errors import InvalidRequest

BACKLOG = 2048
MAX_PORT = 65535
MAX_CONNECTIONS = 1024
STOP_S = 5.0
"""Beyond the time that running requests have: to write what is left to write."""


class AppServer:
    """A listening application."""

    def __init__(
        self,
        app: ASGIApp,
        setting: str,
        listen: str,
        tls: ssl.SSLContext | None = None,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """`listen` is host:port; port 0 picks a free one. Raises InvalidRequest, naming `setting`, if it cannot be.

        Requests on more than `max_connections` at a time are answered with 503.
        """
        self._socket = _bind(setting, listen)
        self.port: int = self._socket.getsockname()[1]
        self._config = uvicorn.Config(
            bounding_heads(app),
            http=ImpatientProtocol,  # h11 parses: it is always there, and bounds headers
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            limit_concurrency=max_connections,
            ssl_context_factory=None if tls is None else lambda config, default: tls,
        )
        self._server = _Uvicorn(self._config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve."""
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        listening = asyncio.create_task(self._server.listening.wait())
        await asyncio.wait({self._serving, listening}, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if self._serving.done():
            self._serving.result()

    async def stop(self, grace_s: float, end: Callable[[], Awaitable[None]] | None = None) -> None:
        """Take no new requests, let running ones finish for so long, then call `end` for what runs still."""
        if self._serving is None:
            self._socket.close()
            return
        self._config.timeout_graceful_shutdown = math.ceil(grace_s + STOP_S)
        self._server.should_exit = True
        await asyncio.wait({self._serving}, timeout=grace_s)
        if end is not None:
            await end()
        await self._serving


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, setting: str, listen: str) -> AsyncIterator[AppServer]:
    """An application that is served until the end of the context, with nothing to drain. Raises InvalidRequest."""
    server = AppServer(app, setting, listen)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


class _Uvicorn(uvicorn.Server):
    """Says when it listens, and leaves signals to the process: it is only a part of that."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _bind(setting: str, listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        if not host or not port.isdecimal() or int(port) > MAX_PORT:
            raise OSError
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, int(port)), family=family, backlog=BACKLOG)
    except OSError as exc:
        bound = "cannot be listened on; it must be host:port, and the port free; or empty for none"
        raise InvalidRequest(setting, listen, bound) from exc
