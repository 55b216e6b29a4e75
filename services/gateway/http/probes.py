"""What orchestrators ask a gateway: whether to leave it running, and whether to send it requests."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


@dataclass(slots=True)
class Health:
    """What the gateway says of itself; whoever watches it writes here."""

    serving: bool = False
    alive: bool = True


class Probes:
    """Endpoints of one gateway's health."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def routes(self) -> list[Route]:
        """Two of them."""
        return [
            Route("/healthz", self.healthz, methods=["GET"]),
            Route("/readyz", self.readyz, methods=["GET"]),
        ]

    async def healthz(self, request: Request) -> JSONResponse:
        """Whether the process should be left running."""
        return _verdict(self._health.alive, "alive")

    async def readyz(self, request: Request) -> JSONResponse:
        """Whether it should get requests."""
        return _verdict(self._health.serving, "serving")


def _verdict(well: bool, name: str) -> JSONResponse:
    return JSONResponse({"status": name if well else f"not {name}"}, 200 if well else 503)
