"""`GET /metrics`: a registry as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PATH = "/metrics"


class MetricsPage:
    """What one process measures.

    Args:
        refresh: called before the registry is read.
    """

    def __init__(self, registry: CollectorRegistry, refresh: Sequence[Callable[[], Awaitable[None]]] = ()) -> None:
        self._registry = registry
        self._refresh = refresh

    def route(self) -> Route:
        """For an application that has other pages, too."""
        return Route(PATH, self.read, methods=["GET"])

    def app(self) -> Starlette:
        """An application of its own."""
        return Starlette(routes=[self.route()])

    async def read(self, request: Request) -> Response:
        """All of it, as the client likes it: Prometheus' text or OpenMetrics."""
        for refresh in self._refresh:
            await refresh()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._registry), headers={"content-type": content_type})
