"""Other clients, as they come: curl, LangChain's ChatOpenAI. And the service's own endpoints, as a page uses them."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import httpx
import pytest
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from services.pb.swaa.v1 import long_context_pb2 as pb

from .harness import Service, run_turn

pytestmark = [pytest.mark.model, pytest.mark.redis]

CHAT = [{"role": "user", "content": "Name a colour."}]


def curl(tiny: Service, path: str, body: Any = None, *options: str) -> str:
    data = () if body is None else ("-H", "Content-Type: application/json", "-d", json.dumps(body))
    command = ("curl", "-sS", "-N", "-i", *options, *data, f"http://{tiny.http_address}{path}")
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_curl(tiny: Service) -> None:
    head, _, body = curl(tiny, "/v1/chat/completions", {"model": "smollm2", "messages": CHAT}).partition("\n\n")
    assert head.startswith("HTTP/1.1 200")
    assert json.loads(body)["choices"][0]["message"]["role"] == "assistant"


def test_curl_streams(tiny: Service) -> None:
    body = {"model": "smollm2", "messages": CHAT, "stream": True, "max_tokens": 4}
    answer = curl(tiny, "/v1/chat/completions", body, "-H", "x-swaa-recipe: sliding")
    head, _, events = answer.partition("\n\n")
    assert "content-type: text/event-stream" in head
    assert "x-swaa-recipe: sliding" in head
    assert "x-swaa-predicted-ttft-ms: " in head
    blocks = events.strip().split("\n\n")
    assert blocks[-1] == "data: [DONE]"
    assert any(block.startswith(": prefill ") for block in blocks)
    assert all(json.loads(block[6:])["object"] for block in blocks[:-1] if block.startswith("data: "))


def test_curl_is_told_what_is_wrong(tiny: Service) -> None:
    head, _, body = curl(tiny, "/v1/completions", {"model": "smollm2", "prompt": "x", "n": 3}).partition("\n\n")
    assert head.startswith("HTTP/1.1 400")
    error = json.loads(body)["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "n", "invalid_value")
    assert "x-should-retry: false" in head


def test_langchain(tiny: Service) -> None:
    model = ChatOpenAI(
        model="smollm2",
        base_url=f"http://{tiny.http_address}/v1",
        api_key=SecretStr("none"),
        temperature=0,
        max_completion_tokens=8,
        default_headers={"x-swaa-recipe": "full"},
    )
    answer = model.invoke([("system", "You are brief."), ("human", "Name a colour.")])
    streamed = list(model.stream([("system", "You are brief."), ("human", "Name a colour.")]))
    assert "".join(str(chunk.content) for chunk in streamed) == answer.content
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] <= 8
    asked = model.bind_tools([{"name": "look", "description": "looks", "parameters": {"type": "object"}}])
    with_tools = asked.invoke("Look.")
    assert with_tools.usage_metadata is not None
    assert with_tools.usage_metadata["input_tokens"] > 20


@pytest.fixture
def http(tiny: Service) -> Any:
    with httpx.Client(base_url=f"http://{tiny.http_address}", timeout=120) as client:
        yield client


def test_probes_and_info(http: httpx.Client) -> None:
    assert http.get("/healthz").json() == {"status": "alive"}
    assert http.get("/readyz").json() == {"status": "serving"}
    info = http.get("/api/info").json()
    assert info["model"] == "smollm2"
    assert info["device"]
    assert info["limits"]["prompt_bytes"] == 64 << 20


def test_recipes_are_those_of_grpc(tiny: Service, http: httpx.Client) -> None:
    by_grpc = tiny.stub.ListRecipes(pb.ListRecipesRequest())
    told = http.get("/api/recipes").json()
    assert [each["recipe"]["name"] for each in told["recipes"]] == [each.recipe.name for each in by_grpc.recipes]
    assert told["quality_source"] == by_grpc.quality_source


def test_a_plan(http: httpx.Client) -> None:
    plan = http.post("/api/plan", json={"prompt_tokens": 900}, headers={"x-swaa-sla": "interactive"}).json()
    assert plan["objective"]["sla_class"] == "interactive"
    assert plan["chosen"]["recipe"]["name"] in [each["recipe"]["name"] for each in plan["candidates"]]
    chat = http.post("/api/plan", json={"prompt": {"messages": CHAT}}).json()
    assert chat["prompt_tokens"] < 40
    wrong = http.post("/api/plan", json={"prompt_token": 900})
    assert wrong.status_code == 400
    assert "prompt_token" in wrong.json()["error"]["message"]


def test_sessions(tiny: Service, http: httpx.Client) -> None:
    session_id = run_turn(tiny, "The ship", {"x-swaa-session": "new"}, max_tokens=2).session_id
    listed = http.get("/api/sessions", params={"limit": 5}).json()["sessions"]
    assert session_id in [session["session_id"] for session in listed]
    assert http.get(f"/api/sessions/{session_id}").json()["version"] == "1"
    forked = http.post(f"/api/sessions/{session_id}/fork")
    assert forked.status_code == 201
    copy = forked.json()["session_id"]
    assert copy != session_id
    for each in (session_id, copy):
        assert http.delete(f"/api/sessions/{each}").status_code == 204
        gone = http.get(f"/api/sessions/{each}")
        assert gone.status_code == 404
        assert gone.json()["error"]["code"] == "session_not_found"
    for limit in ("0", "1001", "many", "-1"):
        assert http.get("/api/sessions", params={"limit": limit}).status_code == 400
