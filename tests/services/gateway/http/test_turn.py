"""What a turn looks like over HTTP, event by event, and how it ends when it does not end well."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from services.errors import ReplicaLost, SlaUnattainable
from services.gateway.http import sse
from services.gateway.http.running import Running
from swaa_runtime.errors import OutOfCapacity
from swaa_runtime.request import TokenLogprob
from tests.services.sessions.builders import asynchronous

from .builders import MODEL, FakeAnswers, accepted, answered, client_of, make_app, progress, token

COMPLETION = {"model": MODEL, "prompt": "hello"}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
TURN = (accepted("s1"), progress(), token("a"), token("b"), answered(2, "c", restored=1))


async def post(answers: FakeAnswers, path: str, **body: Any) -> Any:
    async with client_of(make_app(answers)) as client:
        return await client.post(path, json=body)


def events_of(text: str) -> list[Any]:
    blocks = [block for block in text.split("\n\n") if block.startswith("data: ")]
    return [block if block == "data: [DONE]" else json.loads(block[6:]) for block in blocks]


@asynchronous
async def test_a_whole_answer() -> None:
    answer = await post(FakeAnswers(TURN), "/v1/completions", **COMPLETION)
    told = answer.json()
    assert answer.status_code == 200
    assert told["choices"] == [{"index": 0, "text": "abc", "logprobs": None, "finish_reason": "length"}]
    assert told["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    assert told["system_fingerprint"] == "toy-bf16"
    assert (told["swaa"]["accepted"]["session_id"], told["swaa"]["finish"]["sla_met"]) == ("s1", True)
    assert answer.headers["x-swaa-session"] == "s1"
    assert answer.headers["x-swaa-recipe"] == "tail"


@asynchronous
async def test_a_streamed_answer() -> None:
    answer = await post(
        FakeAnswers(TURN), "/v1/chat/completions", **CHAT, stream=True, stream_options={"include_usage": True}
    )
    first, *pieces, ending, usage, done = events_of(answer.text)
    assert ": prefill 3/3" in answer.text
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert first["swaa"]["accepted"]["recipe"]["name"] == "tail"
    assert [piece["choices"][0]["delta"] for piece in pieces] == [{"content": text} for text in "abc"]
    assert ending["choices"][0]["finish_reason"] == "length"
    assert ending["swaa"]["finish"]["timings"]["ttft_ms"] == 5.0
    assert (usage["choices"], usage["usage"]["total_tokens"], ending["usage"]) == ([], 5, None)
    assert done == "data: [DONE]"
    assert answer.headers["x-request-id"] == "r1"


@asynchronous
async def test_tokens_that_are_no_text_yet_are_told_with_logprobs_only() -> None:
    own = TokenLogprob(-0.5, (0xE2, 0x41), (-0.5, float("-inf")))
    turn = (accepted(), token(b"\xe2", "", own), token(b"\x82", "", own), token(b"\xac", "\N{EURO SIGN}", own))
    plain = await post(
        FakeAnswers([*turn[:1], token(b"\xe2", ""), answered(1)]), "/v1/completions", **COMPLETION, stream=True
    )
    assert len(events_of(plain.text)) == 3
    answers = FakeAnswers([*turn, answered(3)])
    chat = (await post(answers, "/v1/chat/completions", **CHAT, logprobs=True, top_logprobs=2)).json()
    content = chat["choices"][0]["logprobs"]["content"]
    assert bytes(byte for each in content for byte in each["bytes"]).decode() == "\N{EURO SIGN}"
    assert content[0]["top_logprobs"][1] == {"token": "A", "logprob": -9999.0, "bytes": [0x41]}
    legacy = (await post(answers, "/v1/completions", **COMPLETION, logprobs=2)).json()["choices"][0]["logprobs"]
    assert legacy["tokens"] == ["bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"]
    assert legacy["text_offset"] == [0, 0, 0]
    assert legacy["top_logprobs"][0] == {"bytes:\\xe2": -0.5, "A": -9999.0}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("before", [(), (accepted(),)], ids=["before", "after"])
@asynchronous
async def test_a_refusal_has_a_status_as_long_as_nothing_was_sent(before: Any, stream: bool) -> None:
    answer = await post(FakeAnswers([*before, OutOfCapacity("full")]), "/v1/completions", **COMPLETION, stream=stream)
    assert answer.status_code == 429
    assert answer.json()["error"]["message"] == "full"
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("1", "1000")


@asynchronous
async def test_when_to_come_back_is_what_was_predicted() -> None:
    soon = await post(FakeAnswers([SlaUnattainable("busy", 900.0, 1500.2)]), "/v1/completions", **COMPLETION)
    never = await post(FakeAnswers([SlaUnattainable("too slow")]), "/v1/completions", **COMPLETION)
    assert (soon.headers["retry-after"], soon.headers["retry-after-ms"]) == ("2", "1501")
    assert "retry-after" not in never.headers
    assert never.headers["x-should-retry"] == "false"


@asynchronous
async def test_an_error_in_mid_stream_is_an_event_and_the_end() -> None:
    turn = FakeAnswers([accepted(), token("a"), ReplicaLost("gone")])
    answer = await post(turn, "/v1/completions", **COMPLETION, stream=True)
    assert answer.status_code == 200
    assert answer.text.endswith("\n\n")
    last = answer.text.strip().split("\n\n")[-1]
    assert last.startswith("event: error\ndata: ")
    assert json.loads(last.partition("data: ")[2])["error"]["code"] == "replica_lost"
    assert "[DONE]" not in answer.text


@pytest.mark.parametrize("before", [[], [accepted(), token("a")]])
@asynchronous
async def test_errors_tell_nothing_of_our_insides(before: list[Any]) -> None:
    answer = await post(FakeAnswers([*before, ValueError("secret")]), "/v1/completions", **COMPLETION, stream=True)
    assert "unexpected ValueError; see the server's log" in answer.text
    assert "secret" not in answer.text


class Wire:
    """An ASGI connection by hand: what was sent, and a client that can go away or stop reading."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.gone = asyncio.Event()
        self.reading = asyncio.Event()
        self.reading.set()

    async def receive(self) -> Any:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self.reading.wait()
        self.sent.append(message)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)


async def call(answers: FakeAnswers, wire: Wire, running: Running | None = None, **body: Any) -> None:
    data = json.dumps({**COMPLETION, **body}).encode()
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    requests = iter([{"type": "http.request", "body": data, "more_body": False}])

    async def receive() -> Any:
        for message in requests:
            return message
        return await wire.receive()

    await make_app(answers, running)(scope, receive, wire.send)


class Endless(FakeAnswers):
    """Tokens without an end."""

    async def answer(self, *args: Any, **kwargs: Any) -> Any:
        yield accepted()
        try:
            while True:
                self.given += 1
                yield token("a")
                await asyncio.sleep(0)
        finally:
            self.closed += 1


@pytest.mark.parametrize("stream", [True, False])
@asynchronous
async def test_a_client_that_goes_away_ends_the_turn(stream: bool) -> None:
    answers, wire = Endless(), Wire()
    asked = asyncio.create_task(call(answers, wire, stream=stream))
    await until(lambda: answers.given >= 10)
    wire.gone.set()
    await asyncio.wait_for(asked, 120)
    assert answers.closed == 1


@asynchronous
async def test_a_reader_that_pauses_pauses_the_turn() -> None:
    answers, wire = Endless(), Wire()
    asked = asyncio.create_task(call(answers, wire, stream=True))
    await until(lambda: len(wire.sent) >= 10)
    wire.reading.clear()
    for _ in range(10):
        await asyncio.sleep(0)
    before = answers.given
    for _ in range(100):
        await asyncio.sleep(0)
    assert answers.given == before
    wire.reading.set()
    await until(lambda: answers.given >= before + 10)
    wire.gone.set()
    await asked


@pytest.mark.parametrize("stream", [True, False])
@asynchronous
async def test_a_gateway_that_stops_says_so(stream: bool) -> None:
    answers, wire, running = Endless(), Wire(), Running()
    asked = asyncio.create_task(call(answers, wire, running, stream=stream))
    await until(lambda: answers.given >= 10)
    await running.end()
    await asyncio.wait_for(asked, 120)
    assert answers.closed == 1
    assert wire.sent[0]["status"] == (200 if stream else 503)
    assert b'"code":"gateway_stopping"' in wire.sent[-1]["body"].replace(b'": ', b'":')
    late = Wire()
    await call(answers, late, running)
    assert late.sent[0]["status"] == 503


@asynchronous
async def test_a_silent_stream_begins_and_says_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "FIRST_BEAT_S", 0.0)
    monkeypatch.setattr(sse, "BEAT_S", 0.0)
    go_on = asyncio.Event()

    class Slow(FakeAnswers):
        async def answer(self, *args: Any, **kwargs: Any) -> Any:
            yield accepted()
            await go_on.wait()
            raise OutOfCapacity("full after all")

    wire = Wire()
    asked = asyncio.create_task(call(Slow(), wire, stream=True))
    await until(lambda: len(wire.sent) >= 4)
    go_on.set()
    await asked
    assert wire.sent[1]["body"].endswith(b": waiting\n\n")
    assert b"event: error" in wire.sent[-1]["body"]
    assert wire.sent[-1]["more_body"] is False
    assert len(events_of(wire.sent[1]["body"].decode())) == 1, "the opening chunk comes with the first beat"
