"""Another tenant's sessions, prompts and turns are answered as what does not exist, by every RPC and every route."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import grpc
import pytest

from services.gateway.http.openai_api import OpenAiApi
from services.gateway.http.probes import Probes
from services.gateway.http.service_api import ServiceApi
from services.pb.swaa.v1 import long_context_pb2 as pb
from tests.services.replica.builders import asynchronous

from .tenants import RAW, Caller, tenants

NOBODYS = "0123456789abcdef0123456789abcdef"
"""An id that no session has."""

SHARING = {"checkpoint_tokens": 32, "prefix_ttl_s": 60.0}

Outcome = tuple[str, ...]


async def outcome(call: Any, session_id: str) -> Outcome:
    """All that a client learns of an RPC, with the id it asked for left out."""
    try:
        answers = [answer async for answer in call] if hasattr(call, "__aiter__") else [await call]
    except grpc.aio.AioRpcError as exc:
        trailing = sorted(map(str, exc.trailing_metadata() or ()))
        return (exc.code().name, (exc.details() or "").replace(session_id, "<id>"), *trailing)
    return ("OK", *map(str, answers))


def uses(caller: Caller, session_id: str) -> Mapping[str, Callable[[], Any]]:
    """Every RPC that names a session, as a call that is just being made."""
    headers = caller.metadata(x_swaa_session=session_id)
    prompt, sampling = pb.Prompt(text="and"), pb.Sampling(max_tokens=2)
    stub, plain = caller.stub, caller.metadata()
    pieces = [
        pb.GenerateUploadRequest(request=pb.GenerateRequest(sampling=sampling)),
        pb.GenerateUploadRequest(text=b"x"),
    ]
    return {
        "Generate": lambda: stub.Generate(pb.GenerateRequest(prompt=prompt, sampling=sampling), metadata=headers),
        "GenerateUpload": lambda: stub.GenerateUpload(iter(pieces), metadata=headers),
        "Plan": lambda: stub.Plan(pb.PlanRequest(prompt=prompt), metadata=headers),
        "Plan by length": lambda: stub.Plan(pb.PlanRequest(prompt_tokens=9), metadata=headers),
        "GetSession": lambda: stub.GetSession(pb.GetSessionRequest(session_id=session_id), metadata=plain),
        "ForkSession": lambda: stub.ForkSession(pb.ForkSessionRequest(session_id=session_id), metadata=plain),
        "DeleteSession": lambda: stub.DeleteSession(pb.DeleteSessionRequest(session_id=session_id), metadata=plain),
        "ExportSession": lambda: stub.ExportSession(pb.ExportSessionRequest(session_id=session_id), metadata=plain),
    }


NAMES_NO_SESSION = {"ListRecipes", "ListSessions", "ImportSession"}


def test_every_rpc_is_looked_at() -> None:
    nobody: Any = None
    looked_at = {name.partition(" ")[0] for name in uses(Caller(nobody, nobody, ""), NOBODYS)}
    every = {method.name for method in pb.DESCRIPTOR.services_by_name["LongContext"].methods}
    assert looked_at | NAMES_NO_SESSION == every


@asynchronous
async def test_rpcs_answer_as_for_no_session() -> None:
    async with tenants() as all_:
        session_id = await all_.acme.new_session()
        for name in uses(all_.rival, session_id):
            theirs = await outcome(uses(all_.rival, session_id)[name](), session_id)
            nobodys = await outcome(uses(all_.rival, NOBODYS)[name](), NOBODYS)
            assert theirs == nobodys, name
            assert theirs[0] == "NOT_FOUND", name
        for name in uses(all_.acme, session_id):
            if name != "DeleteSession":
                assert (await outcome(uses(all_.acme, session_id)[name](), session_id))[0] == "OK", name
        assert (await outcome(uses(all_.acme, session_id)["DeleteSession"](), session_id))[0] == "OK"


@asynchronous
async def test_sessions_are_listed_to_their_tenant_only() -> None:
    async with tenants() as all_:
        session_id = await all_.acme.new_session()
        own = await all_.rival.new_session("e" * 40)
        for caller, listed in ((all_.acme, [session_id]), (all_.rival, [own]), (all_.operator, [])):
            answer = await caller.stub.ListSessions(pb.ListSessionsRequest(), metadata=caller.metadata())
            assert [session.session_id for session in answer.sessions] == listed
            told = (await caller.ask("GET", "/api/sessions")).json()["sessions"]
            assert [session["session_id"] for session in told] == listed


def routes(session_id: str) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Every route that names a session, in its path or by its header."""
    header = {"x-swaa-session": session_id}
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "and"}], "max_tokens": 2}
    text = {"model": "tiny", "prompt": "and", "max_tokens": 2}
    return {
        "GET /api/sessions/{session_id}": ("GET", f"/api/sessions/{session_id}", {}),
        "POST /api/sessions/{session_id}/fork": ("POST", f"/api/sessions/{session_id}/fork", {}),
        "DELETE /api/sessions/{session_id}": ("DELETE", f"/api/sessions/{session_id}", {}),
        "POST /api/plan": ("POST", "/api/plan", {"headers": header, "json": {"prompt_tokens": 9}}),
        "POST /v1/chat/completions": ("POST", "/v1/chat/completions", {"headers": header, "json": chat}),
        "POST /v1/completions": ("POST", "/v1/completions", {"headers": header, "json": text}),
        "streamed": ("POST", "/v1/completions", {"headers": header, "json": {**text, "stream": True}}),
    }


NAMES_NO_SESSION_BY_HTTP = {
    "GET /v1/models",
    "GET /v1/models/{name:path}",
    "GET /api/info",
    "GET /api/recipes",
    "GET /api/sessions",
    "GET /healthz",
    "GET /readyz",
}


def test_every_route_is_looked_at() -> None:
    bare: list[Any] = [object.__new__(api) for api in (OpenAiApi, ServiceApi, Probes)]
    every = {f"{method} {route.path}" for api in bare for route in api.routes() for method in route.methods - {"HEAD"}}
    assert every - set(routes(NOBODYS)) == NAMES_NO_SESSION_BY_HTTP


@asynchronous
async def test_routes_answer_as_for_no_session() -> None:
    async with tenants() as all_:
        session_id = await all_.acme.new_session()
        for name in routes(session_id):
            found = []
            for each in (session_id, NOBODYS):
                method, path, options = routes(each)[name]
                answer = await all_.rival.ask(method, path, **options)
                headers = sorted((key, value) for key, value in answer.headers.items() if key != "content-length")
                found.append((answer.status_code, answer.text.replace(each, "<id>"), headers))
            assert found[0] == found[1], name
            assert found[0][0] == 404, name
        method, path, options = routes(session_id)["POST /api/plan"]
        assert (await all_.acme.ask(method, path, **options)).status_code == 200


@asynchronous
async def test_a_key_of_anothers_turn_replays_nothing() -> None:
    async with tenants() as all_:
        keyed: dict[str, Any] = {
            "x_swaa_session": "new",
            "x_swaa_idempotency_key": "the-same-key",
            "x_swaa_recipe": "tail",
        }
        first = (await all_.acme.turn(**keyed))[-1].finish.session
        again = (await all_.acme.turn(**keyed))[-1].finish.session
        theirs = (await all_.rival.turn(**keyed))[-1].finish.session
        assert (again.history, again.session_id) == ("replayed", first.session_id)
        assert theirs.history == "none"
        assert theirs.session_id != first.session_id


@asynchronous
async def test_a_prompt_that_another_tenant_has_sent_spares_nothing_and_is_planned_as_unknown() -> None:
    async with tenants(**SHARING) as all_:
        await all_.acme.new_session()

        async def planned(caller: Caller, prompt: str) -> dict[str, Any]:
            """All of a plan but how long the gateway took for it."""
            headers = caller.metadata(x_swaa_session="new")
            plan = await caller.stub.Plan(pb.PlanRequest(prompt=pb.Prompt(text=prompt)), metadata=headers)
            told: dict[str, Any] = {}
            for candidate in plan.candidates:
                prediction = candidate.prediction
                restore = (prediction.restore.kind, prediction.restore.source, prediction.restore.restored_tokens)
                told[candidate.recipe.name] = (*restore, prediction.computed_tokens, prediction.work_ms)
            return told

        unknown = await planned(all_.rival, "f" + RAW[1:])
        assert await planned(all_.rival, RAW) == unknown
        own = await planned(all_.acme, RAW)
        assert own != unknown
        assert own["tail"][1] == "prefix"
        assert own["tail"][2] > 0
        by_rival = (await all_.rival.turn(x_swaa_session="new", x_swaa_recipe="tail"))[-1].finish
        assert (by_rival.usage.restored_tokens, by_rival.session.history) == (0, "none")
        by_acme = (await all_.acme.turn(x_swaa_session="new", x_swaa_recipe="tail"))[-1].finish
        assert by_acme.usage.restored_tokens > 0


@asynchronous
async def test_the_tenant_is_nothing_that_a_request_can_say() -> None:
    async with tenants() as all_:
        session_id = await all_.acme.new_session()
        for name in ("x-tenant", "tenant", "x-forwarded-user"):
            metadata = (*all_.rival.metadata(), (name, "acme"))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await all_.rival.stub.GetSession(pb.GetSessionRequest(session_id=session_id), metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            answer = await all_.rival.ask("GET", f"/api/sessions/{session_id}", headers={name: "acme"})
            assert answer.status_code == 404


@asynchronous
async def test_an_exported_session_is_its_importers() -> None:
    async with tenants() as all_:
        session_id = await all_.acme.new_session()
        request = pb.ExportSessionRequest(session_id=session_id)
        parts = [part async for part in all_.acme.stub.ExportSession(request, metadata=all_.acme.metadata())]
        chunks = [pb.ImportSessionRequest(chunk=part.chunk) for part in parts[1:]]
        assert b"acme" not in b"".join(part.chunk for part in parts), "the file does not say whose it was"
        imported = await all_.rival.stub.ImportSession(iter(chunks), metadata=all_.rival.metadata())
        assert imported.session_id != session_id
        await all_.rival.turn("and", x_swaa_session=imported.session_id)
        mine = await all_.acme.stub.GetSession(
            pb.GetSessionRequest(session_id=session_id), metadata=all_.acme.metadata()
        )
        assert mine.version == 1


@asynchronous
async def test_deleting_leaves_what_another_tenant_has_of_the_same_prompt() -> None:
    async with tenants(**SHARING) as all_:
        await all_.acme.new_session()
        store = all_.service.store
        before = {name for name in (*store.segments, *store.prefixes, *store.manifests) if name[0] == "acme"}
        request = pb.DeleteSessionRequest(session_id=await all_.rival.new_session())
        assert any(tenant == "rival" for tenant, _ in store.segments)
        await all_.rival.stub.DeleteSession(request, metadata=all_.rival.metadata())
        assert {*store.segments, *store.prefixes, *store.manifests} == before
