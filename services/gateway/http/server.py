"""The HTTP server around the gateway's application."""

from __future__ import annotations

import ssl

from starlette.types import ASGIApp

from services.gateway.http.running import Running
from services.http_server import MAX_CONNECTIONS, AppServer


class HttpServer:
    """A listening gateway, whose running requests can be ended."""

    def __init__(
        self,
        app: ASGIApp,
        running: Running,
        listen: str,
        tls: ssl.SSLContext | None = None,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """`listen` is host:port; port 0 picks a free one. Raises InvalidRequest if that cannot be listened on."""
        self._server = AppServer(app, "http_listen", listen, tls, max_connections)
        self._running = running
        self.port = self._server.port

    async def start(self) -> None:
        """Serve."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Take no new requests, let running ones finish for so long, then end them."""
        await self._server.stop(grace_s, self._running.end)
