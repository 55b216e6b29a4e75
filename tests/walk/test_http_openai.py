"""The stock `openai` package, unmodified: chats and completions, streamed or not, and every error by its class."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from transformers import AutoTokenizer

from services.pb.swaa.v1 import long_context_pb2 as pb

from .harness import QUESTION, Service, Turn, log_of, run_turn

pytestmark = [pytest.mark.model, pytest.mark.redis]

TEXT = log_of(4) + QUESTION
FULL = {"x-swaa-recipe": "full"}
CHAT: list[Any] = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "Name a colour."}]
TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def client(tiny: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://{tiny.http_address}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer(default_model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(default_model_folder)


@pytest.fixture(scope="module")
def turn(tiny: Service) -> Turn:
    """The same over gRPC."""
    return run_turn(tiny, TEXT, FULL, max_tokens=12, ignore_eos=True, logprobs=3)


@pytest.fixture(scope="module")
def chat(tiny: Service) -> Turn:
    prompt = pb.Prompt(messages=[pb.ChatMessage(**message) for message in CHAT])
    return run_turn(tiny, prompt, FULL, max_tokens=12, logprobs=2)


def complete(client: openai.OpenAI, **changes: Any) -> Any:
    fields = {"model": "smollm2", "prompt": TEXT, "max_tokens": 12, "temperature": 0.0, "extra_headers": FULL}
    return client.completions.create(**{**fields, "extra_body": {"ignore_eos": True}, **changes})


def ask(client: openai.OpenAI, **changes: Any) -> Any:
    fields = {"model": "smollm2", "messages": CHAT, "max_tokens": 12, "temperature": 0.0, "extra_headers": FULL}
    return client.chat.completions.create(**{**fields, **changes})


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["smollm2"]
    assert client.models.retrieve("smollm2").object == "model"
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client.models.retrieve("gpt-4")


def test_a_completion_is_what_grpc_says(client: openai.OpenAI, turn: Turn) -> None:
    answer = complete(client)
    assert answer.choices[0].text == turn.text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == turn.finish.usage.prompt_tokens
    assert (answer.usage.completion_tokens, answer.usage.total_tokens) == (12, 12 + answer.usage.prompt_tokens)
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert answer.swaa["accepted"]["recipe"]["name"] == "full"
    assert answer.swaa["finish"]["sla_met"] in (True, False)


def test_token_ids_are_a_prompt(client: openai.OpenAI, turn: Turn, tokenizer: Any) -> None:
    token_ids = tokenizer(TEXT)["input_ids"]
    assert complete(client, prompt=token_ids).choices[0].text == turn.text
    assert complete(client, prompt=[token_ids]).choices[0].text == turn.text


def test_a_streamed_completion_is_the_same(client: openai.OpenAI, turn: Turn) -> None:
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == turn.text
    assert chunks[0].swaa["accepted"]["reason"] == "asked for by x-swaa-recipe"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert "ttft_ms" in chunks[-2].swaa["finish"]["timings"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 12
    assert len({chunk.id for chunk in chunks}) == 1
    without = list(complete(client, stream=True))
    assert all(chunk.choices for chunk in without)


def test_a_chat_is_what_grpc_says(client: openai.OpenAI, chat: Turn) -> None:
    answer = ask(client)
    assert answer.choices[0].message.content == chat.text
    assert answer.choices[0].message.role == "assistant"
    assert answer.object == "chat.completion"
    assert answer._request_id == answer.id.removeprefix("chatcmpl-")


def test_a_streamed_chat_is_the_same(client: openai.OpenAI, chat: Turn) -> None:
    chunks = list(ask(client, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == chat.text
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_parts_of_text_are_joined(client: openai.OpenAI, chat: Turn) -> None:
    parts = [{"type": "text", "text": "Name a "}, {"type": "text", "text": "colour."}]
    assert ask(client, messages=[CHAT[0], {"role": "user", "content": parts}]).choices[0].message.content == chat.text


def test_logprobs_of_a_chat(client: openai.OpenAI, chat: Turn) -> None:
    content = ask(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert len(content) == len(chat.tokens)
    for ours, theirs in zip(content, chat.tokens, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob.logprob, abs=0.3)
        assert len(ours.top_logprobs) == 2
        assert bytes(ours.bytes).decode("utf-8", "replace") == ours.token
    text = b"".join(bytes(each.bytes) for each in content).decode("utf-8", "replace")
    assert text.removesuffix("<|im_end|>") == chat.text
    streamed = [chunk.choices[0].logprobs for chunk in ask(client, logprobs=True, top_logprobs=2, stream=True)]
    assert [each.content[0].token for each in streamed if each] == [each.token for each in content]


def test_logprobs_of_a_completion(client: openai.OpenAI, turn: Turn) -> None:
    told = complete(client, logprobs=3).choices[0].logprobs
    assert len(told.tokens) == len(told.text_offset) == 12
    assert told.text_offset == sorted(told.text_offset)
    assert all(token in top for token, top in zip(told.tokens, told.top_logprobs, strict=True))
    assert told.token_logprobs == pytest.approx([token.logprob.logprob for token in turn.tokens], abs=0.3)


def test_sampling_is_obeyed(client: openai.OpenAI, turn: Turn) -> None:
    def draw(**options: Any) -> str:
        return str(complete(client, prompt="The ship", **options).choices[0].text)

    assert draw(temperature=1.5, seed=1) == draw(temperature=1.5, seed=1)
    assert draw(temperature=1.5, seed=1) != draw(temperature=1.5, seed=2)
    assert draw(temperature=1.5, seed=1, extra_body={"top_k": 1, "ignore_eos": True}) == draw()
    stop = turn.text[5:9]
    stopped = complete(client, stop=["never said", stop])
    assert stopped.choices[0].text == turn.text[: turn.text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"


def test_a_session_goes_on(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="smollm2", messages=CHAT, max_tokens=4, extra_headers={"x-swaa-session": "new"}
    )
    session_id = raw.headers["x-swaa-session"]
    assert raw.headers["x-swaa-recipe"]
    again = ask(client, messages=[{"role": "user", "content": "And?"}], extra_headers={"x-swaa-session": session_id})
    history = again.swaa["accepted"]["history_tokens"]
    assert history > 0
    assert again.usage.prompt_tokens_details.cached_tokens == again.swaa["finish"]["usage"]["restored_tokens"]
    assert again.usage.prompt_tokens == history + again.swaa["accepted"]["prompt_tokens"]


def test_tools_and_what_became_of_them_reach_the_template(client: openai.OpenAI) -> None:
    def prompt_tokens(messages: list[Any], **options: Any) -> int:
        return int(ask(client, messages=messages, max_tokens=1, **options).usage.prompt_tokens)

    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "the ship"}'}}
    called = [*CHAT, {"role": "assistant", "content": None, "tool_calls": [call]}]
    answered = [*called, {"role": "tool", "tool_call_id": "c1", "content": "it left"}]
    plain = prompt_tokens(CHAT)
    assert prompt_tokens(CHAT, tools=[TOOL]) > plain + 10
    assert prompt_tokens(CHAT, tools=[TOOL], tool_choice="none") == plain
    assert plain < prompt_tokens(called) < prompt_tokens(answered) < prompt_tokens(answered, tools=[TOOL])


def test_the_asynchronous_client(tiny: Service, chat: Turn) -> None:
    async def run() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"http://{tiny.http_address}/v1", api_key="none") as client:
            options: Any = {"model": "smollm2", "messages": CHAT, "max_tokens": 12, "temperature": 0.0}
            whole = await client.chat.completions.create(**options, extra_headers=FULL)
            streamed = ""
            async for chunk in await client.chat.completions.create(**options, stream=True, extra_headers=FULL):
                streamed += chunk.choices[0].delta.content or ""
            return whole.choices[0].message.content or "", streamed

    assert asyncio.run(run()) == (chat.text, chat.text)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "is not served here"),
        ({"n": 2}, openai.BadRequestError, "one answer a request"),
        ({"response_format": {"type": "json_object"}}, openai.BadRequestError, "response_format"),
        ({"tools": [TOOL], "tool_choice": "required"}, openai.BadRequestError, "only 'auto' and 'none'"),
        ({"tools": [{"type": "retrieval"}]}, openai.BadRequestError, "tools\\[0\\].function"),
        ({"messages": []}, openai.BadRequestError, "messages is \\[\\]: must not be empty"),
        ({"temperature": -1}, openai.BadRequestError, "temperature is -1.0: must be in 0..100"),
        ({"extra_body": {"mirostat": 2}}, openai.BadRequestError, "mirostat is 2: unknown field"),
        ({"extra_headers": {"x-swaa-sla": "gold"}}, openai.BadRequestError, "unknown SLA class"),
        ({"extra_headers": {"x-swaa-session": "none"}}, openai.NotFoundError, "none"),
        (
            {"extra_headers": {"x-swaa-strict": "true", "x-slo-ttft-ms": "0.001"}},
            openai.RateLimitError,
            "ttft",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_their_classes(
    client: openai.OpenAI, changes: dict[str, Any], error: type[openai.APIStatusError], said: str, stream: bool
) -> None:
    with pytest.raises(error, match=said) as caught:
        ask(client, stream=stream, **changes)
    assert caught.value.code
    assert caught.value.type


def test_what_can_never_fit_is_refused_with_a_status_also_when_streamed(client: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="together they must be at most"):
            ask(client, max_tokens=100_000, stream=stream)


def test_fields_without_effect_are_ignored(client: openai.OpenAI, chat: Turn) -> None:
    answer = ask(client, user="me", store=True, metadata={"a": "b"}, n=1, presence_penalty=0, logit_bias={})
    assert answer.choices[0].message.content == chat.text
