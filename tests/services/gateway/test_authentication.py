"""Nobody without valid credentials gets anywhere, whatever is wrong with them, by any RPC and any route."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.gateway.auth.authenticator import MESSAGE
from services.pb.swaa.v1 import long_context_pb2 as pb
from tests.services.replica.builders import asynchronous

from .tenants import Caller, tenants
from .test_isolation import NAMES_NO_SESSION_BY_HTTP, NOBODYS, outcome, routes, uses

REFUSAL = ("UNAUTHENTICATED", MESSAGE)


async def silent() -> AsyncIterator[Any]:
    """A client that sends nothing, and does not end: whoever answers it has not waited for anything of it."""
    await asyncio.Event().wait()
    yield


def calls(caller: Caller) -> dict[str, Any]:
    """Every RPC."""
    stub, metadata = caller.stub, caller.metadata()
    return {
        **uses(caller, NOBODYS),
        "GenerateUpload": lambda: stub.GenerateUpload(silent(), metadata=metadata),
        "ListRecipes": lambda: stub.ListRecipes(pb.ListRecipesRequest(), metadata=metadata),
        "ListSessions": lambda: stub.ListSessions(pb.ListSessionsRequest(), metadata=metadata),
        "ImportSession": lambda: stub.ImportSession(silent(), metadata=metadata),
    }


@asynchronous
async def test_every_rpc_asks_for_credentials_and_refuses_alike() -> None:
    async with tenants() as all_:
        answers = set()
        for caller in all_.refused.values():
            for name in calls(caller):
                answers.add(await outcome(calls(caller)[name](), NOBODYS))
        [answer] = answers
        assert answer[:2] == REFUSAL
        assert "www-authenticate" in answer[2]
        assert not all_.service.store.manifests
        for name, call in uses(all_.acme, NOBODYS).items():
            assert (await outcome(call(), NOBODYS))[0] == "NOT_FOUND", name


@asynchronous
async def test_methods_that_do_not_exist_are_not_told_to_strangers() -> None:
    async with tenants() as all_:
        for caller, code in ((all_.refused["unknown"], "UNAUTHENTICATED"), (all_.acme, "UNIMPLEMENTED")):
            method: Any = all_.channel.unary_unary("/swaa.v1.LongContext/NoSuch")  # type: ignore[call-arg]
            call = method(b"", metadata=caller.metadata())
            assert (await outcome(call, NOBODYS))[0] == code


@asynchronous
async def test_health_is_open_and_reflection_is_not() -> None:
    async with tenants() as all_:
        health = health_pb2_grpc.HealthStub(all_.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        watched = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watched.read()).status == health_pb2.HealthCheckResponse.SERVING
        watched.cancel()
        reflection = reflection_pb2_grpc.ServerReflectionStub(all_.channel)
        request = [reflection_pb2.ServerReflectionRequest(list_services="")]
        stranger = all_.refused["revoked"].metadata()
        assert (await outcome(reflection.ServerReflectionInfo(iter(request), metadata=stranger), NOBODYS))[
            :2
        ] == REFUSAL
        call = reflection.ServerReflectionInfo(iter(request), metadata=all_.acme.metadata())
        assert "swaa.v1.LongContext" in (await outcome(call, NOBODYS))[1]


def every_route() -> dict[str, tuple[str, str, dict[str, Any]]]:
    every = routes(NOBODYS)
    for name in (*NAMES_NO_SESSION_BY_HTTP, "GET /metrics", "GET /none"):
        method, _, path = name.partition(" ")
        every[name] = method, path.replace("{name:path}", "tiny"), {}
    return every


OPEN = {"GET /healthz", "GET /readyz"}


@asynchronous
async def test_every_route_but_probes_asks_for_credentials_and_refuses_alike() -> None:
    async with tenants() as all_:
        answers = set()
        for name, (method, path, options) in every_route().items():
            for caller in all_.refused.values():
                answer = await caller.ask(method, path, **options)
                if name in OPEN:
                    assert answer.status_code == 200
                else:
                    answers.add((answer.status_code, answer.text, str(sorted(answer.headers.items()))))
            own = await all_.acme.ask(method, path, **options)
            assert own.status_code != 401, name
        [(status, _, headers)] = answers
        assert status == 401
        assert "('www-authenticate', 'Bearer realm=\"swaa\"')" in headers
        assert "('x-should-retry', 'false')" in headers


@asynchronous
async def test_a_refusal_by_http_has_openais_shape() -> None:
    async with tenants() as all_:
        answer = await all_.refused["missing"].ask("GET", "/v1/models")
        error = {"message": MESSAGE, "type": "invalid_request_error", "param": None, "code": "invalid_api_key"}
        assert answer.json() == {"error": error}


@asynchronous
async def test_the_console_is_open_and_figures_are_an_operators() -> None:
    async with tenants() as all_:
        stranger = all_.refused["missing"]
        assert (await stranger.ask("GET", "/")).status_code == 200
        assert (await stranger.ask("GET", "/console/main.js")).status_code == 200
        assert (await stranger.ask("GET", "/console/../metrics")).status_code == 401
        assert (await all_.operator.ask("GET", "/metrics")).status_code == 200
        for path in ("/metrics", "/metrics%0A"):
            answer = await all_.acme.ask("GET", path)
            assert answer.status_code in (403, 404), path
            assert "swaa_" not in answer.text
        denied = await all_.acme.ask("GET", "/metrics")
        assert (denied.status_code, denied.json()["error"]["code"]) == (403, "permission_denied")


@asynchronous
async def test_what_is_logged_names_the_tenant_and_never_the_credential(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "services"):
        async with tenants() as all_:
            await all_.acme.turn()
            with pytest.raises(grpc.aio.AioRpcError):
                await all_.refused["expired"].turn()
            credentials = [all_.acme.credential, all_.refused["expired"].credential]
    assert "tenant acme" in caplog.text
    told = caplog.text + str([vars(record) for record in caplog.records])
    for credential in credentials:
        assert credential[-64:] not in told
