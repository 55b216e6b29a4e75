"""A tiny service that asks for keys, and tenants who use it by both wires."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import httpx
from prometheus_client import CollectorRegistry

from services.gateway.auth.api_keys import ApiKey, KeyRing, new_key
from services.gateway.auth.authenticator import Credentials
from services.gateway.http.app import build_app
from services.gateway.http.probes import Health
from services.gateway.http.running import Running
from services.gateway.receiving import Intake
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.pb.swaa.v1 import long_context_pb2_grpc as pb_grpc
from services.reloaded import Reloaded
from services.telemetry.metrics import AuthenticationMetrics
from services.telemetry.process import Telemetry
from tests.services.telemetry.scrape import page_of
from tests.services.tiny_service import TinyService, tiny_service

NOW = datetime.now(UTC)
RAW = "d" * 120


def keys_of(*keys: ApiKey) -> Credentials:
    """An authenticator that knows these, from no file."""
    known = Reloaded("file", [], lambda: (KeyRing(keys), []))
    return Credentials(known, None, AuthenticationMetrics(CollectorRegistry()))


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody with a credential, or with none."""

    stub: Any
    http: httpx.AsyncClient
    credential: str

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.credential}"} if self.credential else {}

    def metadata(self, **more: str) -> tuple[tuple[str, str], ...]:
        """`x_swaa_session="new"` and the like."""
        return (*self.headers.items(), *((name.replace("_", "-"), value) for name, value in more.items()))

    async def turn(self, prompt: str = RAW, max_tokens: int = 3, **headers: str) -> list[pb.GenerateResponse]:
        """All events of a turn."""
        request = pb.GenerateRequest(prompt=pb.Prompt(text=prompt), sampling=pb.Sampling(max_tokens=max_tokens))
        return [event async for event in self.stub.Generate(request, metadata=self.metadata(**headers))]

    async def new_session(self, prompt: str = RAW) -> str:
        """Its id."""
        events = await self.turn(prompt, x_swaa_session="new", x_swaa_recipe="tail")
        assert events[-1].finish.session.saved
        return str(events[-1].finish.session.session_id)

    async def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """An HTTP request."""
        more = options.pop("headers", {})
        return await self.http.request(method, path, headers={**self.headers, **more}, **options)


@dataclass(frozen=True, slots=True)
class Tenants:
    """Two tenants, an operator, and those whose credentials are not taken."""

    service: TinyService
    channel: grpc.aio.Channel
    acme: Caller
    rival: Caller
    operator: Caller
    refused: dict[str, Caller]


@asynccontextmanager
async def tenants(**options: Any) -> AsyncIterator[Tenants]:
    """A service of its own; `options` are `tiny_service`'s."""
    past = NOW - timedelta(hours=1)
    acme, rival, operator = new_key("acme", NOW), new_key("rival", NOW), new_key("ops", NOW, operator=True)
    late, away, unknown = new_key("acme", past, expires_at=past), new_key("acme", past), new_key("acme", NOW)
    kept = (acme[1], rival[1], operator[1], late[1], away[1].model_copy(update={"revoked_at": past}))
    authenticator, telemetry = keys_of(*kept), Telemetry()
    async with tiny_service(telemetry, authenticator, **options) as service:
        page = page_of(service, telemetry)
        parts = ("tiny", service.facts, service.answers, service.sessions, authenticator)
        app = build_app(*parts, Health(serving=True), Running(), Intake(1 << 30), page)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            grpc.aio.insecure_channel(service.address) as channel,
            httpx.AsyncClient(transport=transport, base_url="http://tiny") as http,
        ):
            stub = pb_grpc.LongContextStub(channel)  # type: ignore[no-untyped-call]
            by_reason = {"missing": "", "unknown": unknown[0], "expired": late[0], "revoked": away[0]}
            known = [Caller(stub, http, key) for key, _ in (acme, rival, operator)]
            refused = {reason: Caller(stub, http, key) for reason, key in by_reason.items()}
            yield Tenants(service, channel, known[0], known[1], known[2], refused)
