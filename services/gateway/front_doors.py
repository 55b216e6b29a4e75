"""Where clients come in: gRPC, and HTTP unless it is turned off. Both are opened, drained and closed as one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from services.config import ServeConfig
from services.gateway.answers import Answers
from services.gateway.http.app import build_app
from services.gateway.http.running import Running
from services.gateway.http.server import HttpServer
from services.gateway.http.service_api import Health
from services.gateway.receiving import Intake
from services.gateway.server import GatewayServer
from services.gateway.service import LongContextService
from services.gateway.session_admin import SessionAdmin
from services.replica.facts import ModelFacts
from services.sessions.store import Store
from services.telemetry.page import MetricsPage


class FrontDoors:
    """The servers of one gateway."""

    def __init__(
        self, config: ServeConfig, facts: ModelFacts, answers: Answers, store: Store, metrics: MetricsPage | None = None
    ) -> None:
        """Listens, and does not serve yet. Raises InvalidRequest for an address that cannot be listened on."""
        policy, model_name = config.session_policy, Path(config.model).name
        intake = Intake(config.receive_memory_mib << 20)
        service = LongContextService(model_name, facts, answers, store, policy, intake)
        self._grpc = GatewayServer(service, config.listen, config.max_connections)
        self._health = Health()
        self._http: HttpServer | None = None
        if config.http_listen:
            running = Running()
            sessions = SessionAdmin(store, policy)
            app = build_app(model_name, facts, answers, sessions, self._health, running, intake, metrics)
            self._http = HttpServer(app, running, config.http_listen, config.max_connections)

    @property
    def port(self) -> int:
        """Of gRPC."""
        return self._grpc.port

    @property
    def http_port(self) -> int | None:
        """Of HTTP; None if it is turned off."""
        return None if self._http is None else self._http.port

    async def start(self) -> None:
        """Serve, and say so."""
        await self._grpc.start()
        if self._http is not None:
            await self._http.start()
        await self.set_serving(True)

    async def set_serving(self, serving: bool, alive: bool = True) -> None:
        """What probes are told: `serving` is readiness, `alive` whether the process should be left running."""
        self._health.serving, self._health.alive = serving, alive
        await self._grpc.set_serving(serving, alive)

    async def stop(self, grace_s: float) -> None:
        """Take no new requests, let running ones finish for so long, then end them."""
        self._health.serving = False
        http = [] if self._http is None else [self._http.stop(grace_s)]
        await asyncio.gather(self._grpc.stop(grace_s), *http)
