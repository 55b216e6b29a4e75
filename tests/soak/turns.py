"""Polite clients. Each does one thing, and says in a word how it ended; what it raises, others judge."""

from __future__ import annotations

import io
import json
from typing import Any

from services.client import TurnOptions
from services.client.errors import NotFound
from services.pb.swaa.v1 import long_context_pb2 as pb
from tests.soak.ledger import Told
from tests.soak.world import CALL_TIMEOUT_S, Refused, World

NOTHING = "nothing to do"


async def one_shot(world: World) -> str:
    """A prompt, an answer."""
    prompt = world.prompt(shared=world.rng.random() < 0.3)
    return world.note(prompt, await world.client.generate(prompt, **world.options()), None)


async def sampled(world: World) -> str:
    """An answer that is drawn, with the likeliest tokens beside each."""
    prompt = world.prompt()
    options: TurnOptions = {**world.options(), "temperature": 0.8, "seed": 7, "recipe": "sliding-tail", "logprobs": 2}
    answer = await world.client.generate(prompt, **options)
    return answer.reason


async def hog(world: World) -> str:
    """Reserves much of the memory without hurry: it has to give way."""
    prompt = world.prompt()
    high = world.sizes.prompt_tokens[1]
    options: TurnOptions = {"sla": "quality", "max_tokens": high, "timeout_s": CALL_TIMEOUT_S, "recipe": "full"}
    async with world.client.stream(prompt, **options) as stream:
        num_tokens = 0
        async for _ in stream:
            num_tokens += 1
            if num_tokens >= world.sizes.answer_tokens[1]:
                return "gone"
    return "ended"


async def urgent(world: World) -> str:
    """Wants its first token at once, and would rather be refused than late."""
    prompt = world.prompt()
    options: TurnOptions = {**world.options(), "sla": "interactive", "ttft_ms": 2500.0, "strict": True}
    return world.note(prompt, await world.client.generate(prompt, **options), None)


async def open_session(world: World) -> str:
    """A new conversation, the start of its prompt shared with others."""
    if len(world.ledger.sessions) >= world.sizes.max_sessions:
        return await delete(world)
    prompt = world.prompt(shared=True)
    return world.note(prompt, await world.client.generate(prompt, session="new", **world.options()), "new")


async def go_on(world: World) -> str:
    """The next turn of a conversation."""
    session = world.some_session()
    if session is None:
        return await open_session(world)
    with world.claimed(session):
        prompt = world.prompt(at_most=world.sizes.prompt_tokens[0] * 2)
        answer = await world.client.generate(prompt, session=session, **world.options())
        return world.note(prompt, answer, session)


async def fork(world: World) -> str:
    """A copy of a conversation."""
    session = world.some_session()
    if session is None or len(world.ledger.sessions) >= world.sizes.max_sessions:
        return NOTHING
    with world.claimed(session):
        world.ledger.copied(session, await world.client.sessions.fork(session, timeout_s=CALL_TIMEOUT_S))
    return "copied"


async def export_and_import(world: World) -> str:
    """A copy by way of a file."""
    session = world.some_session()
    if session is None or len(world.ledger.sessions) >= world.sizes.max_sessions:
        return NOTHING
    with world.claimed(session):
        file = io.BytesIO()
        await world.client.sessions.export_to(file, session, timeout_s=CALL_TIMEOUT_S)
        file.seek(0)
        world.ledger.copied(session, await world.client.sessions.import_from(file, timeout_s=CALL_TIMEOUT_S))
    return "copied"


async def delete(world: World) -> str:
    """A conversation that nobody needs any more; it is gone then."""
    session = world.some_session(growing=False)
    if session is None:
        return NOTHING
    with world.claimed(session):
        await world.client.sessions.delete(session, timeout_s=CALL_TIMEOUT_S)
        world.ledger.forget(session)
        try:
            await world.client.sessions.get(session, timeout_s=CALL_TIMEOUT_S)
        except NotFound:
            return "deleted"
    raise AssertionError(f"session {session} is there after it was deleted")


async def look_around(world: World) -> str:
    """What there is, and what would be."""
    await world.client.recipes(timeout_s=CALL_TIMEOUT_S)
    await world.client.sessions.list(timeout_s=CALL_TIMEOUT_S)
    await world.client.plan(prompt_tokens=world.sizes.prompt_tokens[1], timeout_s=CALL_TIMEOUT_S)
    return "told"


async def upload(world: World) -> str:
    """A prompt in pieces."""
    options = world.options()
    metadata = (*world.target.metadata, ("x-swaa-sla", str(options["sla"])))
    call = world.stub.GenerateUpload(pieces(world), metadata=metadata, timeout=CALL_TIMEOUT_S)
    tokens = [event.token.token_id async for event in call if event.WhichOneof("event") == "token"]
    return "answered" if tokens else "empty"


def pieces(world: World) -> list[pb.GenerateUploadRequest]:
    """Messages of an upload."""
    high = world.options()["max_tokens"]
    first = pb.GenerateUploadRequest(request=pb.GenerateRequest(sampling=pb.Sampling(max_tokens=high)))
    stretches = [pb.TokenIds(token_ids=world.prompt(at_most=64)) for _ in range(3)]
    return [first, *(pb.GenerateUploadRequest(token_ids=stretch) for stretch in stretches)]


async def http_completion(world: World) -> str:
    """OpenAI's API, a document for an answer."""
    session = world.some_session() if world.rng.random() < 0.5 else None
    with world.claimed(session or ""):
        body = completion(world)
        response = await world.http.post("/v1/completions", json=body, headers=session_header(session))
        told = refused_or(response.status_code, response.json())
        return _note_http(world, told["choices"][0]["text"], told["swaa"]["accepted"], told["swaa"]["finish"])


async def http_stream(world: World) -> str:
    """OpenAI's API, event by event."""
    session = world.some_session() if world.rng.random() < 0.5 else None
    with world.claimed(session or ""):
        body = {**completion(world), "stream": True}
        text = ""
        accepted: dict[str, Any] = {}
        finish: dict[str, Any] = {}
        async with world.http.stream("POST", "/v1/completions", json=body, headers=session_header(session)) as response:
            if response.status_code != 200:
                refused_or(response.status_code, json.loads(await response.aread()))
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise Refused(200, event["error"]["code"], event["error"]["message"])
                text += "".join(choice["text"] for choice in event["choices"])
                accepted = event.get("swaa", {}).get("accepted", accepted)
                finish = event.get("swaa", {}).get("finish", finish)
        if not finish:
            raise AssertionError("a stream over HTTP ended without its end")
        return _note_http(world, text, accepted, finish)


def completion(world: World) -> dict[str, Any]:
    """The body of a request."""
    prompt = world.prompt(at_most=world.sizes.prompt_tokens[0] * 2)
    return {"model": "smollm2", "prompt": prompt, "max_tokens": world.options()["max_tokens"], "temperature": 0}


def session_header(session: str | None) -> dict[str, str]:
    """Of a turn of that session, if any."""
    return {"x-swaa-session": session} if session else {}


def refused_or(status: int, body: dict[str, Any]) -> dict[str, Any]:
    """The body of an answer. Raises Refused."""
    if status != 200:
        raise Refused(status, str(body["error"]["code"]), str(body["error"]["message"]))
    return body


def _note_http(world: World, text: str, accepted: dict[str, Any], finish: dict[str, Any]) -> str:
    session = finish.get("session") or {}
    if not session.get("session_id"):
        return "answered"
    if not session["saved"]:
        return world.unsaved(session.get("error", ""))
    known = world.ledger.sessions[session["session_id"]]
    known.version = int(session["version"])
    known.turns[known.offset + known.version - 1] = Told(accepted["recipe"]["name"], None, text, greedy=True)
    world.ledger.num_acknowledged += 1
    return str(session["history"]).partition(":")[0]
