"""What gRPC has and OpenAI has not: recipes, plans, sessions. Bodies are the proto's messages as JSON."""

from __future__ import annotations

from importlib.metadata import version
from typing import TypeVar

from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.gateway import messages
from services.gateway.answers import Answers
from services.gateway.http.authentication import identity_of
from services.gateway.http.body import read_json
from services.gateway.http.openai_api import request_headers
from services.gateway.http.turn import as_json
from services.gateway.identity import Identity
from services.gateway.limits import MAX_BODY_BYTES, MAX_PROMPT_BYTES, MAX_UPLOAD_BYTES
from services.gateway.plans import plan_response, recipes_response
from services.gateway.receiving import Intake
from services.gateway.session_admin import DEFAULT_SESSIONS_LISTED, SessionAdmin
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.replica.facts import ModelFacts
from swaa_runtime.errors import InvalidRequest

AnyMessage = TypeVar("AnyMessage", bound=Message)


class ServiceApi:
    """Endpoints of one service."""

    def __init__(
        self, model_name: str, facts: ModelFacts, answers: Answers, sessions: SessionAdmin, intake: Intake
    ) -> None:
        self._intake = intake
        self._model_name = model_name
        self._facts = facts
        self._answers = answers
        self._sessions = sessions

    def routes(self) -> list[Route]:
        """Paths below /api."""
        return [
            Route("/api/info", self.info, methods=["GET"]),
            Route("/api/recipes", self.recipes, methods=["GET"]),
            Route("/api/plan", self.plan, methods=["POST"]),
            Route("/api/sessions", self.list_sessions, methods=["GET"]),
            Route("/api/sessions/{session_id}", self.get_session, methods=["GET"]),
            Route("/api/sessions/{session_id}", self.delete_session, methods=["DELETE"]),
            Route("/api/sessions/{session_id}/fork", self.fork_session, methods=["POST"]),
        ]

    async def info(self, request: Request) -> JSONResponse:
        """What is served, and what it takes."""
        told = as_json(self._recipes(identity_of(request)))
        for name in ("recipes", "sla_classes"):
            del told[name]
        limits = {
            "prompt_bytes": MAX_UPLOAD_BYTES,
            "plan_prompt_bytes": MAX_PROMPT_BYTES,
            "body_bytes": MAX_BODY_BYTES,
            "default_max_tokens": messages.DEFAULT_MAX_TOKENS,
        }
        kv_bytes = self._facts.shape.bytes_per_token_layer
        return JSONResponse(
            {**told, "version": version("swaa"), "limits": limits, "kv_bytes_per_token_layer": kv_bytes}
        )

    async def recipes(self, request: Request) -> JSONResponse:
        """`ListRecipesResponse`."""
        return JSONResponse(as_json(self._recipes(identity_of(request))))

    async def plan(self, request: Request) -> JSONResponse:
        """`PlanRequest` to `PlanResponse`, with the headers of a turn."""
        asked = _message(await read_json(request, self._intake), pb.PlanRequest())
        plan = await plan_response(self._answers, identity_of(request), asked, request_headers(request))
        return JSONResponse(as_json(plan))

    async def list_sessions(self, request: Request) -> JSONResponse:
        """`ListSessionsResponse`; `?limit=` as in the proto."""
        text = request.query_params.get("limit", str(DEFAULT_SESSIONS_LISTED))
        if not (text.isascii() and text.isdecimal() and len(text) < 10):
            raise InvalidRequest("limit", text, "must be a whole number")
        sessions = await self._sessions.recent(identity_of(request), int(text))
        told = pb.ListSessionsResponse(sessions=[messages.session_message(manifest) for manifest in sessions])
        return JSONResponse(as_json(told))

    async def get_session(self, request: Request) -> JSONResponse:
        """`Session`."""
        manifest = await self._sessions.get(identity_of(request), request.path_params["session_id"])
        return JSONResponse(as_json(messages.session_message(manifest)))

    async def delete_session(self, request: Request) -> Response:
        """204: it is forgotten."""
        await self._sessions.delete(identity_of(request), request.path_params["session_id"])
        return Response(status_code=204)

    async def fork_session(self, request: Request) -> JSONResponse:
        """`Session`: the copy."""
        manifest = await self._sessions.fork(identity_of(request), request.path_params["session_id"])
        return JSONResponse(as_json(messages.session_message(manifest)), 201)

    def _recipes(self, identity: Identity) -> pb.ListRecipesResponse:
        return recipes_response(self._model_name, identity, self._facts, self._answers.turns.catalogs)


def _message(body: dict[str, object], message: AnyMessage) -> AnyMessage:
    """The body as a message. Raises InvalidRequest for fields that it does not have, and values they do not take."""
    try:
        return ParseDict(body, message)
    except (ParseError, RecursionError) as exc:
        raise InvalidRequest("body", "JSON", f"must be a {message.DESCRIPTOR.name}: {exc}") from None
