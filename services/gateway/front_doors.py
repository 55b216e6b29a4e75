"""Where clients come in: gRPC, and HTTP unless it is turned off. Both are opened, drained and closed as one.

Beside them is a door for operators and probes, if it has an address: clients with certificates are no use to kubelet.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from services.certificate_source import CertificateSource, CurrentContext, grpc_server_credentials
from services.config import ServeConfig
from services.gateway.answers import Answers
from services.gateway.auth.authenticator import Authenticator
from services.gateway.http.app import build_app, build_operators_app
from services.gateway.http.probes import Health
from services.gateway.http.running import Running
from services.gateway.http.server import HttpServer
from services.gateway.receiving import Intake
from services.gateway.server import GatewayServer
from services.gateway.service import LongContextService
from services.gateway.session_admin import SessionAdmin
from services.http_server import AppServer
from services.replica.facts import ModelFacts
from services.sessions.store import Store
from services.telemetry.page import MetricsPage


class FrontDoors:
    """The servers of one gateway."""

    def __init__(
        self,
        config: ServeConfig,
        facts: ModelFacts,
        answers: Answers,
        store: Store,
        sessions: SessionAdmin,
        authenticator: Authenticator,
        metrics: MetricsPage | None = None,
        certificates: CertificateSource | None = None,
    ) -> None:
        """Listens, and does not serve yet; with TLS if there are certificates.

        Raises:
            InvalidRequest: an address cannot be listened on.
        """
        model_name = Path(config.model).name
        credentials = None if certificates is None else grpc_server_credentials(certificates)
        intake = Intake(config.receive_memory_mib << 20)
        service = LongContextService(model_name, facts, answers, store, sessions, intake)
        self._grpc = GatewayServer(service, authenticator, config.listen, credentials, config.max_connections)
        self._health = Health()
        self._http: HttpServer | None = None
        if config.http_listen:
            running = Running()
            parts = (facts, answers, sessions, authenticator, self._health, running, intake)
            app = build_app(model_name, *parts, metrics)
            tls = None if certificates is None else CurrentContext.following(certificates)
            self._http = HttpServer(app, running, config.http_listen, tls, config.max_connections)
        self._operators: AppServer | None = None
        if config.metrics_listen:
            operators_app = build_operators_app(self._health, metrics)
            self._operators = AppServer(operators_app, "metrics_listen", config.metrics_listen)

    @property
    def port(self) -> int:
        """Of gRPC."""
        return self._grpc.port

    @property
    def http_port(self) -> int | None:
        """Of HTTP; None if it is turned off."""
        return None if self._http is None else self._http.port

    @property
    def operators_port(self) -> int | None:
        """Of operators; None if there is none."""
        return None if self._operators is None else self._operators.port

    async def start(self) -> None:
        """Serve, and say so."""
        if self._operators is not None:
            await self._operators.start()
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
        if self._operators is not None:  # last: probes are told of the drain as long as it takes
            await self._operators.stop(0)
