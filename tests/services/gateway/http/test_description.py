"""The OpenAPI description tells of every route and every field, and is what it says it is."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from starlette.routing import Route

from services.gateway.http.chat import ChatFields
from services.gateway.http.completions import CompletionFields
from services.gateway.http.description import endpoints
from services.gateway.http.schema import IGNORED, NEUTRAL, TurnFields
from services.gateway.sla import HEADERS
from tests.services.sessions.builders import asynchronous

from .builders import FakeAnswers, client_of, make_app


async def described() -> Any:
    async with client_of(make_app(FakeAnswers())) as client:
        return (await client.get("/openapi.json")).json()


@asynchronous
async def test_every_route_but_the_consoles_is_described() -> None:
    paths = (await described())["paths"]
    told = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    there = {
        (method, route.path.replace(":path}", "}"))
        for route in make_app(FakeAnswers()).routes
        if isinstance(route, Route) and not route.path.startswith(("/console", "/openapi"))
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert told == there - {("GET", "/")}
    assert told == endpoints().keys() - {("GET", "/metrics")}, "which this application is without"
    assert all(told["summary"] for methods in paths.values() for told in methods.values())


@pytest.mark.parametrize(("path", "fields"), [("chat/completions", ChatFields), ("completions", CompletionFields)])
@asynchronous
async def test_a_turns_fields_and_headers_are_all_there(path: str, fields: type[TurnFields]) -> None:
    operation = (await described())["paths"][f"/v1/{path}"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"].keys() == fields.model_fields.keys() | NEUTRAL.keys() | IGNORED
    assert schema["additionalProperties"] is False
    assert [each["name"] for each in operation["parameters"]] == list(HEADERS)


@pytest.mark.parametrize(
    ("body", "is_valid"),
    [
        ({"messages": [{"role": "user", "content": "x"}], "model": "toy"}, True),
        ({"messages": [{"role": "user", "content": "x", "weight": 1}], "model": "toy"}, False),
        ({"messages": [{"role": "user", "content": "x"}], "model": "toy", "n": 2}, False),
        ({"messages": [{"role": "user", "content": "x"}], "model": "toy", "user": "me"}, True),
        ({"messages": [], "model": "toy", "new_field": 1}, False),
    ],
)
@asynchronous
async def test_its_schemas_tell_good_bodies_from_bad_ones(body: dict[str, Any], is_valid: bool) -> None:
    operation = (await described())["paths"]["/v1/chat/completions"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator.check_schema(schema)
    assert jsonschema.Draft202012Validator(schema).is_valid(body) == is_valid
