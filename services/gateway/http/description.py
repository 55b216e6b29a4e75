"""`GET /openapi.json`: every endpoint, by the definitions that requests are checked with.

What stands here beside the routes is only which definition is whose; a route that is not in the table is an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, cast

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from services.gateway.http.chat import ChatFields
from services.gateway.http.completions import CompletionFields
from services.gateway.http.message_schema import message_schema
from services.gateway.http.schema import IGNORED, NEUTRAL, TurnFields
from services.gateway.session_admin import DEFAULT_SESSIONS_LISTED, MAX_SESSIONS_LISTED
from services.gateway.sla import HEADERS
from services.pb.swaa.v1 import long_context_pb2 as pb

PATH = "/openapi.json"
JSON, EVENTS, TEXT = "application/json", "text/event-stream", "text/plain"

Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a route takes and gives, beside what its path says.

    Attributes:
        body: schema of its JSON body; None: it takes none.
        answer: schema of its JSON answer; None: it has none.
        status: of an answer that is none of an error.
        has_headers: whether it takes the headers of a turn.
        query: parameters of its query.
        kinds: content types that it answers with.
    """

    body: Schema | None = None
    answer: Schema | None = field(default_factory=lambda: {"type": "object"})
    status: int = 200
    has_headers: bool = False
    query: tuple[Schema, ...] = ()
    kinds: tuple[str, ...] = (JSON,)


def _turn(fields: type[TurnFields]) -> Endpoint:
    schema = fields.model_json_schema()
    known = schema["properties"]
    for name, neutral in NEUTRAL.items():
        known.setdefault(name, {"enum": list(neutral.values), "description": neutral.bound})
    for name in IGNORED:
        known.setdefault(name, {"description": "accepted, and without any effect"})
    return Endpoint(schema, has_headers=True, kinds=(JSON, EVENTS))


def _message(kind: type[Message]) -> Schema:
    return message_schema(cast(Descriptor, kind.DESCRIPTOR))


_LIMIT: Schema = {
    "name": "limit",
    "in": "query",
    "schema": {
        "type": "integer",
        "minimum": 1,
        "maximum": MAX_SESSIONS_LISTED,
        "default": DEFAULT_SESSIONS_LISTED,
    },
}


def endpoints() -> dict[tuple[str, str], Endpoint]:
    """By method and path."""
    session = _message(pb.Session)
    return {
        ("POST", "/v1/chat/completions"): _turn(ChatFields),
        ("POST", "/v1/completions"): _turn(CompletionFields),
        ("GET", "/v1/models"): Endpoint(),
        ("GET", "/v1/models/{name}"): Endpoint(),
        ("GET", "/api/info"): Endpoint(),
        ("GET", "/api/recipes"): Endpoint(answer=_message(pb.ListRecipesResponse)),
        ("POST", "/api/plan"): Endpoint(_message(pb.PlanRequest), _message(pb.PlanResponse), has_headers=True),
        ("GET", "/api/sessions"): Endpoint(answer=_message(pb.ListSessionsResponse), query=(_LIMIT,)),
        ("GET", "/api/sessions/{session_id}"): Endpoint(answer=session),
        ("DELETE", "/api/sessions/{session_id}"): Endpoint(answer=None, status=204),
        ("POST", "/api/sessions/{session_id}/fork"): Endpoint(answer=session, status=201),
        ("GET", "/healthz"): Endpoint(),
        ("GET", "/readyz"): Endpoint(),
        ("GET", "/metrics"): Endpoint(kinds=(TEXT,)),
    }


_ERROR: Schema = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}


class Description:
    """The description of these routes, made once. Raises KeyError for one that nobody describes."""

    def __init__(self, routes: Iterable[Route]) -> None:
        known = endpoints()
        paths: dict[str, dict[str, Any]] = {}
        for route in routes:
            path = route.path.replace(":path}", "}")
            for method in sorted((route.methods or set()) - {"HEAD"}):
                paths.setdefault(path, {})[method.lower()] = _operation(route, path, known[method, path])
        self._document = {
            "openapi": "3.1.0",
            "info": {"title": "SWAA", "version": version("swaa")},
            "paths": paths,
        }

    def route(self) -> Route:
        """Where it is read."""
        return Route(PATH, self.read, methods=["GET"])

    async def read(self, request: Request) -> JSONResponse:
        """This description."""
        return JSONResponse(self._document)


def _operation(route: Route, path: str, endpoint: Endpoint) -> dict[str, Any]:
    parameters: list[Schema] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in route.param_convertors
    ]
    parameters += endpoint.query
    if endpoint.has_headers:
        parameters += [{"name": name, "in": "header", "schema": {"type": "string"}} for name in HEADERS]
    good: dict[str, Any] = {"description": "as asked"}
    if endpoint.answer is not None:
        good["content"] = {kind: {"schema": endpoint.answer if kind == JSON else {}} for kind in endpoint.kinds}
    bad = {"description": "refused, or failed", "content": {JSON: {"schema": _ERROR}}}
    told: dict[str, Any] = {
        "summary": (inspect.getdoc(route.endpoint) or "").partition("\n")[0],
        "parameters": parameters,
        "responses": {str(endpoint.status): good, "default": bad},
    }
    if endpoint.body is not None:
        told["requestBody"] = {"required": True, "content": {JSON: {"schema": endpoint.body}}}
    return told
