"""Every body is understood or refused by name: whatever JSON it is, nothing else happens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.http.body import parse_object
from services.gateway.http.chat import ChatFields
from services.gateway.http.completions import CompletionFields
from services.gateway.http.schema import IGNORED, NEUTRAL, parse
from services.gateway.limits import MAX_JSON_DEPTH, MAX_MESSAGES, MAX_TOOLS
from services.gateway.prompt import ChatMessage, PromptInput, ToolCall
from swaa_runtime.errors import InvalidRequest
from swaa_runtime.request import SamplingParams

USER = {"role": "user", "content": "hello"}
TOOL = {"type": "function", "function": {"name": "look", "description": "looks", "parameters": {"type": "object"}}}
CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}


def chat(**fields: Any) -> ChatFields:
    return parse({"model": "m", "messages": [USER], **fields}, ChatFields)


def completion(**fields: Any) -> CompletionFields:
    return parse({"model": "m", "prompt": "x", **fields}, CompletionFields)


def test_defaults_are_openais() -> None:
    assert chat().params() == SamplingParams(max_tokens=256, temperature=1.0)
    assert completion().params() == SamplingParams(max_tokens=16, temperature=1.0)
    assert chat().prompt() == PromptInput(messages=(ChatMessage("user", "hello"),))


def test_all_of_sampling() -> None:
    fields = chat(
        max_completion_tokens=5, temperature=0.5, top_p=0.9, top_k=3, min_p=0.1, seed=7, stop="end", ignore_eos=True
    )
    assert fields.params() == SamplingParams(5, 0.5, 3, 0.9, 0.1, 7, ("end",), True)
    assert chat(stop=["a", "b"]).params().stop == ("a", "b")
    assert chat(logprobs=True).params().logprobs == 0
    assert chat(logprobs=True, top_logprobs=4).params().logprobs == 4
    assert chat(logprobs=False).params().logprobs is None
    assert completion(logprobs=3, max_tokens=2).params() == SamplingParams(2, 1.0, logprobs=3)


def test_null_is_absent() -> None:
    nothing = dict.fromkeys(["temperature", "stop", "tools", "seed", "stream_options", "user", "n", "max_tokens"])
    assert chat(**nothing) == chat()


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_what_has_no_effect_is_ignored(name: str) -> None:
    assert chat(**{name: {"whatever": [1]}}) == chat()


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_what_is_not_to_be_had_is_accepted_as_nothing_only(name: str) -> None:
    for value in NEUTRAL[name].values:
        assert chat(**{name: value}) == chat()
    for value in ("something", 2, 0.5, True, [1], {"a": 1}):
        with pytest.raises(InvalidRequest, match="not supported") as caught:
            chat(**{name: value})
        assert caught.value.field == name


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"mirostat": 1}, "mirostat"),
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 1e400}, "temperature"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
        ({"top_k": 2**31}, "top_k"),
        ({"seed": -1}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs"),
        ({"messages": "hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [USER] * (MAX_MESSAGES + 1)}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [USER, {"role": "user", "content": 5}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0].type"),
        ({"messages": [{**USER, "audio": {"id": "a"}}]}, "messages[0].audio"),
        ({"messages": [{**USER, "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"tools": [TOOL] * (MAX_TOOLS + 1)}, "tools"),
        ({"tools": [{"type": "code"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "tools[0].function.strict"),
        ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "see"}}},
            "tool_choice.function.name",
        ),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], field: str) -> None:
    def understand() -> Any:
        asked = chat(**fields)
        return asked.include_usage, asked.params(), asked.prompt()

    with pytest.raises(InvalidRequest) as caught:
        understand()
    assert caught.value.field == field


def test_messages_of_tools() -> None:
    asked = chat(
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "annotations": []},
            {"role": "tool", "tool_call_id": "c", "content": "a ship"},
        ],
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "look"}},
    ).prompt()
    assert asked.messages == (
        ChatMessage("system", "be brief"),
        ChatMessage("assistant", "", (ToolCall("c", "look", {"at": 1}),)),
        ChatMessage("tool", "a ship", tool_call_id="c"),
    )
    assert asked.tools.schemas == (TOOL,)
    asked.check()


@pytest.mark.parametrize("prompt", [[1, 2], [[1, 2]]])
def test_token_ids(prompt: Any) -> None:
    assert completion(prompt=prompt).as_prompt() == PromptInput(token_ids=(1, 2))
    assert completion(prompt=["x"]).as_prompt() == PromptInput(text="x")


@pytest.mark.parametrize("prompt", [["a", "b"], [[1], [2]], [1, "a"], [1, True], [1.5], {"a": 1}, [{"a": 1}], 5])
def test_other_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion(prompt=prompt).as_prompt()
    assert caught.value.field == "prompt"


NAMES = sorted({*ChatFields.model_fields, *CompletionFields.model_fields, *NEUTRAL, *IGNORED, "other"})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("a1 \N{EURO SIGN}", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*NAMES, "role", "content"]), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(NAMES), JSON))
def test_any_fields_are_understood_or_refused(fields: dict[str, Any]) -> None:
    given_fields = {"model": "m", "messages": [USER], "prompt": "x", **fields}
    for understand in (chat_of, completion_of):
        try:
            prompt, params = understand(given_fields)
            prompt.check()
        except InvalidRequest:
            continue
        assert isinstance(params, SamplingParams)
        assert fields.get("other") is None


def chat_of(fields: dict[str, Any]) -> tuple[PromptInput, SamplingParams]:
    asked = parse({name: value for name, value in fields.items() if name != "prompt"}, ChatFields)
    return asked.prompt(), asked.params()


def completion_of(fields: dict[str, Any]) -> tuple[PromptInput, SamplingParams]:
    asked = parse({name: value for name, value in fields.items() if name != "messages"}, CompletionFields)
    return asked.as_prompt(), asked.params()


@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_object_or_refused(data: bytes) -> None:
    try:
        found = parse_object(data)
    except InvalidRequest:
        return
    assert json.loads(data) == found


def test_depth_has_a_bound() -> None:
    def nested(depth: int) -> bytes:
        return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"

    assert parse_object(nested(MAX_JSON_DEPTH - 1))
    for depth in (MAX_JSON_DEPTH + 1, 10**6):
        with pytest.raises(InvalidRequest, match="must not be nested deeper than 64"):
            parse_object(nested(depth))


def test_what_json_has_not_is_refused() -> None:
    for data, said in (
        (b'{"a": 1, "a": 2}', "'a' is given twice"),
        (b'{"a": Infinity}', "Infinity is not allowed"),
        (b'{"a": "\\udfff"}', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'"a"', "must be a JSON object"),
        (b"", "must be JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "must be JSON"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            parse_object(data)
