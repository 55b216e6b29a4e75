"""Calls as a program makes them: what is sent, what is tried again, what is raised, what ends when."""

from __future__ import annotations

import io
import time
from typing import Any

import grpc
import pytest
import trustme

from services.client import (
    NO_RETRY,
    AsyncClient,
    Busy,
    DeadlineExceeded,
    InvalidRequest,
    Message,
    NotFound,
    Overloaded,
    Retry,
    ServerError,
    TurnOptions,
    Unavailable,
)
from services.client.errors import RETRY_AFTER_METADATA
from services.gateway.limits import MAX_PROMPT_BYTES
from services.gateway.receiving import Intake
from services.gateway.sla import HEADERS, IDEMPOTENCY_HEADER, TenantPolicy, parse_headers
from services.gateway.upload import collect_upload
from services.pb.swaa.v1 import long_context_pb2 as pb
from tests.services.gateway.builders import CLASSES
from tests.services.replica.builders import asynchronous
from tests.services.tiny_service import tiny_service, until

from .fake_service import ACCEPTED, FINISH, FakeService, Refusal, fake_service, prefill, token

GOOD = [ACCEPTED, prefill(4), prefill(10), token(7, "a"), token(8, ""), FINISH]
FAST = Retry(first_wait_s=0.001, max_wait_s=0.001)
GONE = Refusal(grpc.StatusCode.UNAVAILABLE, "gone")


def connect(service: FakeService, **options: Any) -> AsyncClient:
    return AsyncClient(service.address, **{"timeout_s": 20, "retry": FAST, **options})


@asynchronous
async def test_every_header_and_setting_can_be_given_and_arrives() -> None:
    options: TurnOptions = {
        "sla": "quality",
        "ttft_ms": 1.5,
        "tpot_ms": 2.5,
        "min_quality": 0.0,
        "priority": -1,
        "recipe": "full",
        "strict": True,
        "idempotency_key": "k",
        "max_tokens": 3,
        "temperature": 0.5,
        "top_k": 4,
        "top_p": 0.25,
        "min_p": 0.125,
        "seed": 5,
        "stop": ["a", "b"],
        "ignore_eos": True,
        "logprobs": 0,
        "metadata": [("x-trace", "t")],
    }
    async with fake_service(GOOD) as service, connect(service, metadata=[("x-of-all", "a")]) as client:
        await client.generate("text", session="new", **options)
        [sent], [request] = service.headers, service.requests
        assert set(HEADERS) <= set(sent)
        assert (sent["x-trace"], sent["x-of-all"]) == ("t", "a")
        objective = parse_headers(sent.items(), CLASSES, TenantPolicy())
        assert (objective.sla_class, objective.ttft_ms, objective.tpot_ms) == ("quality", 1.5, 2.5)
        assert (objective.min_quality, objective.priority, objective.strict) == (0.0, -1, True)
        assert (objective.session_id, objective.recipe_name, objective.idempotency_key) == ("new", "full", "k")
        assert request.sampling == pb.Sampling(
            max_tokens=3, temperature=0.5, top_k=4, top_p=0.25, min_p=0.125, seed=5, stop=["a", "b"], ignore_eos=True,
            logprobs=0,
        )  # fmt: skip


@asynchronous
async def test_what_is_not_given_is_not_sent_and_only_sessions_get_a_key() -> None:
    async with fake_service(GOOD) as service, connect(service) as client:
        await client.generate("text", sla=None, strict=False, seed=None)
        assert not any(name.startswith(("x-swaa", "x-slo")) for name in service.headers[0])
        assert service.requests[0].sampling == pb.Sampling()
        for _ in range(2):
            await client.generate("text", session="new")
        keys = {sent[IDEMPOTENCY_HEADER] for sent in service.headers[1:]}
        assert len(keys) == 2
        assert min(map(len, keys)) >= 32


@pytest.mark.parametrize(
    ("prompt", "options", "expected"),
    [
        ("a log\n", {"question": "who?"}, pb.Prompt(messages=[pb.ChatMessage(role="user", content="a log\n\nwho?")])),
        ("a log\n", {}, pb.Prompt(messages=[pb.ChatMessage(role="user", content="a log")])),
        ("a log\n", {"raw": True}, pb.Prompt(text="a log\n")),
        ("a log\n", {"raw": True, "question": "?"}, pb.Prompt(text="a log\n\n?")),
        ([1, 2], {}, pb.Prompt(token_ids=[1, 2])),
        ([Message("tool", "3")], {}, pb.Prompt(messages=[pb.ChatMessage(role="tool", content="3")])),
    ],
)
@asynchronous
async def test_prompts(prompt: Any, options: Any, expected: pb.Prompt) -> None:
    async with fake_service(GOOD) as service, connect(service) as client:
        await client.generate(prompt, **options)
        assert service.requests[0].prompt == expected


@pytest.mark.parametrize(
    ("prompt", "options", "said"),
    [
        ("a", {"sla": "caf\N{LATIN SMALL LETTER E WITH ACUTE}"}, "x-swaa-sla is .*must be printable ASCII"),
        ("a", {"session": "a\nb"}, "x-swaa-session is .*must be printable ASCII"),
        ("a", {"max_tokens": -1}, "max_tokens is -1: "),
        ("a", {"seed": "x"}, "seed is 'x': "),
        ("a\ud800", {"raw": True}, "text is "),
        ([1, -2], {}, "token_ids is "),
        ([1, Message("user", "a")], {}, "token_ids is "),
        ([1], {"question": "who?"}, "question is 'who\\?': goes with a prompt that is a text only"),
        ("a", {"timeout_s": 0}, "timeout_s is 0: must be above 0"),
    ],
)
@asynchronous
async def test_what_cannot_be_sent_is_refused_here(prompt: Any, options: Any, said: str) -> None:
    async with fake_service(GOOD) as service, connect(service) as client:
        with pytest.raises(InvalidRequest, match=said):
            await client.generate(prompt, **options)
        assert not service.requests


@asynchronous
async def test_an_unknown_option_is_a_type_error() -> None:
    async with AsyncClient() as client:
        with pytest.raises(TypeError, match="unknown option 'maxtokens'"):
            client.stream("a", maxtokens=3)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="unknown option 'seed'"):
            await client.plan("a", seed=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("raw", [True, False])
@asynchronous
async def test_a_long_text_is_uploaded_again_at_each_attempt(raw: bool) -> None:
    text = "\N{EURO SIGN}uro " * (MAX_PROMPT_BYTES // 7 + 1)
    async with fake_service([GONE], GOOD) as service, connect(service) as client:
        await client.generate(text, raw=raw, max_tokens=3)
        assert len(service.requests) == 2

        async def sent() -> Any:
            for part in service.requests[1]:
                yield part

        with Intake(1 << 30).receiving("prompt", 1 << 30) as receiving:
            prompt, sampling = await collect_upload(sent(), receiving, 1000)
        assert sampling == pb.Sampling(max_tokens=3)
        assert prompt.text == text if raw else [message.content for message in prompt.messages] == [text]


@asynchronous
async def test_many_token_ids_are_uploaded() -> None:
    ids = [2**32 - 1] * (MAX_PROMPT_BYTES // 5 + 1)
    async with fake_service(GOOD) as service, connect(service) as client:
        await client.generate(ids)
        assert [token_id for part in service.requests[0] for token_id in part.token_ids.token_ids] == ids


@asynchronous
async def test_an_answer_is_its_tokens_and_what_was_held_back() -> None:
    finish = pb.GenerateResponse(finish=pb.Finish(reason=pb.FINISH_REASON_LENGTH, text="!", sla_misses=["slow"]))
    seen: list[object] = []
    async with fake_service([*GOOD[:-1], finish]) as service, connect(service) as client:
        stream = client.stream("a", on_accepted=seen.append, on_progress=seen.append)
        assert (stream.accepted, stream.progress) == (None, None)
        tokens = [token async for token in stream]
        answer = await stream.answer()
        assert [(token.token_id, token.text) for token in tokens] == [(7, "a"), (8, ""), (None, "!")]
        assert (answer.text, answer.token_ids, answer.tokens) == ("a!", (7, 8), tuple(tokens))
        assert (answer.reason, answer.sla_misses, answer.session) == ("length", ("slow",), None)
        assert answer.recipe.name == "full"
        assert [type(news).__name__ for news in seen] == ["Accepted", "Progress", "Progress"]
        assert seen[0] is stream.accepted is answer.accepted
        assert seen[2] is stream.progress


@pytest.mark.parametrize(
    "first",
    [
        [GONE],
        [ACCEPTED, prefill(3), GONE],
        [Refusal(grpc.StatusCode.ABORTED)],
        [Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, trailing=((RETRY_AFTER_METADATA, "1"),))],
    ],
)
@asynchronous
async def test_before_the_first_token_it_is_tried_again_with_the_same_key(first: Any) -> None:
    async with fake_service(first, GOOD) as service, connect(service) as client:
        answer = await client.generate("a", session="chat")
        assert answer.text == "a"
        keys = {sent[IDEMPOTENCY_HEADER] for sent in service.headers}
        assert (len(service.headers), len(keys)) == (2, 1)
        assert service.requests[0] == service.requests[1]


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ([], ServerError),
        ([ACCEPTED, token(1)], ServerError),
        ([token(1), FINISH], ServerError),
        ([ACCEPTED, pb.GenerateResponse(finish=pb.Finish())], ServerError),
        ([ACCEPTED, token(1), GONE], Unavailable),
        ([Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED)], Overloaded),
        ([Refusal(grpc.StatusCode.NOT_FOUND)], NotFound),
        ([Refusal(grpc.StatusCode.INTERNAL)], ServerError),
    ],
)
@asynchronous
async def test_else_it_is_not(script: Any, error: type[Exception]) -> None:
    async with fake_service(script, GOOD) as service, connect(service) as client:
        with pytest.raises(error):
            await client.generate("a")
        assert len(service.requests) == 1


@asynchronous
async def test_attempts_are_bounded() -> None:
    async with fake_service([GONE]) as service, connect(service) as client:
        with pytest.raises(Unavailable, match="gone"):
            await client.generate("a")
        assert len(service.requests) == FAST.max_attempts


@asynchronous
async def test_the_service_says_how_long_to_wait_and_the_deadline_whether_that_is_too_long() -> None:
    busy = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", ((RETRY_AFTER_METADATA, "200"),))
    async with fake_service([busy], GOOD) as service, connect(service) as client:
        started_s = time.monotonic()
        await client.generate("a")
        assert time.monotonic() - started_s >= 0.2
    async with fake_service([busy]) as service, connect(service) as client:
        with pytest.raises(Overloaded, match="full") as caught:
            await client.generate("a", timeout_s=0.15)
        assert caught.value.retry_after_s == 0.2
        assert len(service.requests) == 1


@asynchronous
async def test_a_fork_whose_answer_is_lost_is_not_made_twice() -> None:
    async with fake_service([GONE]) as service, connect(service) as client:
        with pytest.raises(Unavailable):
            await client.sessions.fork("chat")
        assert len(service.requests) == 1
    async with fake_service([Refusal(grpc.StatusCode.ABORTED)], []) as service, connect(service) as client:
        assert (await client.sessions.fork("chat")).session_id == "copy"


@asynchronous
async def test_what_a_lost_attempt_deleted_is_deleted() -> None:
    missing = Refusal(grpc.StatusCode.NOT_FOUND)
    async with fake_service([GONE], [missing]) as service, connect(service) as client:
        await client.sessions.delete("chat")
        assert len(service.requests) == 2
    async with fake_service([missing]) as service, connect(service) as client:
        with pytest.raises(NotFound):
            await client.sessions.delete("chat")


@asynchronous
async def test_closing_a_stream_ends_the_turn() -> None:
    async with tiny_service() as service, AsyncClient(service.address) as client:
        async with client.stream("a log", max_tokens=900, recipe="full") as stream:
            async for _ in stream:
                break
        await until(lambda: service.replica.num_turns == 0)
        assert await service.rig.used_blocks() == 0
        with pytest.raises(ServerError, match="closed before its end"):
            await stream.answer()


@asynchronous
async def test_a_listener_that_fails_ends_the_turn_with_its_error() -> None:
    def fail(progress: object) -> None:
        raise ZeroDivisionError

    async with tiny_service() as service, AsyncClient(service.address) as client:
        with pytest.raises(ZeroDivisionError):
            await client.generate("a log", max_tokens=900, on_progress=fail)
        await until(lambda: service.replica.num_turns == 0)


@asynchronous
async def test_a_deadline_ends_the_call() -> None:
    async with tiny_service() as service, AsyncClient(service.address, timeout_s=0.2) as client:
        with pytest.raises(DeadlineExceeded):
            await client.generate("a log", max_tokens=1000, recipe="full")


@asynchronous
async def test_nobody_there() -> None:
    async with AsyncClient("127.0.0.1:1", retry=NO_RETRY) as client:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
            await client.recipes()
        with pytest.raises(DeadlineExceeded):
            await client.wait_until_serving(0.3)


@asynchronous
async def test_tls_with_an_authority_of_ones_own() -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    server = grpc.ssl_server_credentials([(issued.private_key_pem.bytes(), chain)])
    trusting = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    async with fake_service(GOOD, credentials=server) as service:
        async with connect(service, credentials=trusting) as client:
            assert (await client.generate("a")).text == "a"
        for credentials in (None, grpc.ssl_channel_credentials(trustme.CA().cert_pem.bytes())):
            async with connect(service, credentials=credentials, retry=NO_RETRY) as stranger:
                with pytest.raises(Unavailable):
                    await stranger.generate("a")


@asynchronous
async def test_a_conversation() -> None:
    async with tiny_service() as service, AsyncClient(service.address, timeout_s=120) as client:
        async with client.session(recipe="tail", max_tokens=5, keep=False) as chat:
            with pytest.raises(InvalidRequest, match="nothing has been saved"):
                await chat.fork()
            first = await chat.ask("a log", question="who?")
            assert first.session is not None
            assert chat.id == str(first.session.session_id)
            assert len(first.token_ids) == 5
            copy = await chat.fork()
            again, twin = await chat.ask("and when?", max_tokens=3), await copy.ask("and when?", max_tokens=3)
            assert again.token_ids == twin.token_ids
            assert again.usage.history_tokens == first.usage.prompt_tokens + 5
            assert {session.num_turns for session in await client.sessions.list()} == {2}
            async with (
                chat.stream("x", max_tokens=500) as running,
                AsyncClient(service.address, retry=NO_RETRY) as other,
            ):
                await anext(running)
                with pytest.raises(Busy):
                    await other.session(chat.id).ask("y")
        assert [session.session_id for session in await client.sessions.list()] == [copy.id]
        async with client.session(copy.id) as same:
            assert same.id == copy.id
        assert (await client.sessions.get(str(copy.id))).recipe_name == "tail"


@asynchronous
async def test_a_conversation_whose_first_turn_was_broken_off_leaves_nothing() -> None:
    async with tiny_service() as service, AsyncClient(service.address, timeout_s=120) as client:
        async with client.session(max_tokens=900, keep=False) as chat:
            async with chat.stream("a log") as stream:
                await anext(stream)
            assert chat.id is None
        assert await client.sessions.list() == ()


@asynchronous
async def test_sessions_go_to_files_and_back() -> None:
    async with tiny_service() as service, AsyncClient(service.address, timeout_s=120) as client:
        first = await client.generate("a log", session="new", max_tokens=5)
        assert first.session is not None
        file = io.BytesIO()
        assert await client.sessions.export_to(file, first.session.session_id) == len(file.getvalue()) > 0
        file.seek(0)
        copy = await client.sessions.import_from(file)
        assert copy.session_id != first.session.session_id
        assert (copy.version, copy.num_turns) == (1, 1)
        assert not service.store.manifests["default", copy.session_id].idempotency_key


@asynchronous
async def test_plans_and_the_catalogue() -> None:
    async with tiny_service() as service, AsyncClient(service.address, timeout_s=120) as client:
        catalog = await client.recipes()
        assert (catalog.model, catalog.num_layers) == ("tiny", 3)
        assert {item.recipe.name for item in catalog.recipes} == {"full", "sliding", "tail", "interleaved"}
        assert catalog.recipes[0].quality[0].prompt_tokens == 100
        plan = await client.plan("a log", recipe="tail")
        assert plan.chosen.recipe.full_layers == ()
        assert plan.chosen.recipe.lookback_layers == (0, 2)
        assert (plan.chosen.recipe.name, len(plan.candidates)) == ("tail", 4)
        assert (await client.plan(prompt_tokens=500)).prompt_tokens == 500
