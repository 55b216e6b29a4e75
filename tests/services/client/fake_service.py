"""A service that answers what a test tells it to, and keeps what it was asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from services.gateway.limits import GRPC_OPTIONS
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.pb.swaa.v1 import long_context_pb2_grpc as pb_grpc


@dataclass(frozen=True, slots=True)
class Refusal:
    """A status that ends a call."""

    code: grpc.StatusCode
    details: str = "because"
    trailing: tuple[tuple[str, str], ...] = ()


Script = Sequence[pb.GenerateResponse | Refusal]


@dataclass
class FakeService(pb_grpc.LongContextServicer):
    """Each call takes the next script; the last one stays. Of a unary call only a refusal is looked at."""

    scripts: list[Script]
    requests: list[Any] = field(default_factory=list)
    headers: list[dict[str, Any]] = field(default_factory=list)
    cancelled: list[bool] = field(default_factory=list)
    address: str = ""

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        async for response in self._play(request, context):
            yield response

    async def GenerateUpload(self, parts: Any, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        async for response in self._play([part async for part in parts], context):
            yield response

    async def ListRecipes(self, request: Any, context: Any) -> pb.ListRecipesResponse:
        await self._refuse(request, context)
        return pb.ListRecipesResponse(model="fake")

    async def ForkSession(self, request: Any, context: Any) -> pb.Session:
        await self._refuse(request, context)
        return pb.Session(session_id="copy")

    async def DeleteSession(self, request: Any, context: Any) -> pb.DeleteSessionResponse:
        await self._refuse(request, context)
        return pb.DeleteSessionResponse()

    async def _play(self, request: Any, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        for event in self._next(request, context):
            if isinstance(event, Refusal):
                await context.abort(event.code, event.details, event.trailing)
            else:
                yield event

    async def _refuse(self, request: Any, context: Any) -> None:
        for event in self._next(request, context):
            if isinstance(event, Refusal):
                await context.abort(event.code, event.details, event.trailing)

    def _next(self, request: Any, context: Any) -> Script:
        self.requests.append(request)
        self.headers.append(dict(context.invocation_metadata()))
        context.add_done_callback(lambda call: self.cancelled.append(call.cancelled()))
        return self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]


@asynccontextmanager
async def fake_service(
    *scripts: Script, credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[FakeService]:
    """It, listening on `address`; with TLS, if there are credentials."""
    service = FakeService(list(scripts))
    server = grpc.aio.server(options=GRPC_OPTIONS)
    pb_grpc.add_LongContextServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    if credentials is None:
        service.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    else:
        service.address = f"localhost:{server.add_secure_port('localhost:0', credentials)}"
    await server.start()
    try:
        yield service
    finally:
        await server.stop(0)


ACCEPTED = pb.GenerateResponse(accepted=pb.Accepted(request_id="r", recipe=pb.Recipe(name="full")))
FINISH = pb.GenerateResponse(finish=pb.Finish(reason=pb.FINISH_REASON_STOP, sla_met=True))


def prefill(done_tokens: int) -> pb.GenerateResponse:
    return pb.GenerateResponse(prefill=pb.PrefillProgress(done_tokens=done_tokens, total_tokens=10))


def token(token_id: int, text: str = "x") -> pb.GenerateResponse:
    return pb.GenerateResponse(token=pb.Token(token_id=token_id, text=text))
