"""`/v1/chat/completions`: OpenAI's fields to a prompt, and an answer in OpenAI's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from services.gateway.http.body import parse_object
from services.gateway.http.logprobs import chat_logprobs
from services.gateway.http.schema import Strict, TurnFields, items_of, parse_part
from services.gateway.limits import MAX_MESSAGES, MAX_TOOLS
from services.gateway.messages import DEFAULT_MAX_TOKENS
from services.gateway.prompt import ChatMessage, PromptInput, ToolCall, Tools
from services.gateway.token_bytes import TokenBytes
from swaa_runtime.errors import InvalidRequest
from swaa_runtime.outputs import TokenOutput
from swaa_runtime.request import SamplingParams

CHOICES = ("none", "auto", "required")


class _MessageFields(Strict):
    role: str
    content: str | list[Any] = ""
    name: str = ""
    tool_calls: list[Any] = Field(default_factory=list)
    tool_call_id: str = ""
    annotations: list[Any] = Field(default_factory=list)


class _NamedTool(Strict):
    type: str
    function: dict[str, Any]


class ChatFields(TurnFields):
    """Of a request's body."""

    messages: list[Any] = Field(json_schema_extra=items_of(_MessageFields, MAX_MESSAGES))
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    tools: list[Any] = Field(default_factory=list, json_schema_extra=items_of(_NamedTool, MAX_TOOLS))
    tool_choice: str | dict[str, Any] = "auto"

    def params(self) -> SamplingParams:
        """Raises InvalidRequest for a value out of bounds."""
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise InvalidRequest("max_tokens", self.max_tokens, "give either max_tokens or max_completion_tokens")
        given = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs", self.top_logprobs, "only with logprobs: true")
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self.sampling(DEFAULT_MAX_TOKENS if given is None else given, logprobs)

    def prompt(self) -> PromptInput:
        """Raises InvalidRequest for messages or tools that are none."""
        for name, items, most in (("messages", self.messages, MAX_MESSAGES), ("tools", self.tools, MAX_TOOLS)):
            if len(items) > most:
                raise InvalidRequest(name, f"{len(items)} items", f"must be at most {most}")
        if not self.messages:
            raise InvalidRequest("messages", [], "must not be empty")
        messages = [_message(each, f"messages[{index}]") for index, each in enumerate(self.messages)]
        tools = [_tool(each, f"tools[{index}]") for index, each in enumerate(self.tools)]
        return PromptInput(messages=tuple(messages), tools=Tools(tuple(tools), self._choice()))

    def _choice(self) -> str | Mapping[str, Any]:
        choice = self.tool_choice
        if isinstance(choice, str):
            if choice not in CHOICES:
                raise InvalidRequest("tool_choice", choice, f"must be one of {', '.join(CHOICES)}, or a function")
            return choice
        named = parse_part(choice, _NamedTool, "tool_choice")
        name = parse_part(named.function, _FunctionName, "tool_choice.function").name
        if name not in [tool.get("function", {}).get("name") for tool in self.tools]:
            raise InvalidRequest("tool_choice.function.name", name, "must be the name of one of tools")
        return choice


class _Part(Strict):
    type: str
    text: str


class _FunctionName(Strict):
    name: str


class _Call(Strict):
    id: str = ""
    type: str = "function"
    function: dict[str, Any]


class _CalledFunction(Strict):
    name: str
    arguments: str


class _ToolFunction(Strict):
    name: str
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    strict: bool = False


def _message(value: Any, where: str) -> ChatMessage:
    fields = parse_part(value, _MessageFields, where)
    if fields.tool_calls and fields.role != "assistant":
        raise InvalidRequest(f"{where}.tool_calls", fields.role, "only messages of the assistant have them")
    if fields.annotations:
        raise InvalidRequest(f"{where}.annotations", fields.annotations, "not supported: the template has no place")
    calls = [_call(each, f"{where}.tool_calls[{index}]") for index, each in enumerate(fields.tool_calls)]
    role = "system" if fields.role == "developer" else fields.role  # OpenAI's newer word for it
    content = _text(fields.content, f"{where}.content")
    return ChatMessage(role, content, tuple(calls), fields.tool_call_id, fields.name)


def _text(content: str | Sequence[Any], where: str) -> str:
    """Text of all parts, as it is: what is to stand between them, the client says."""
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(content):
        place = f"{where}[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise InvalidRequest(f"{place}.type", kind, "must be text: the model reads neither images, sound nor files")
        texts.append(parse_part(part, _Part, place).text)
    return "".join(texts)


def _call(value: Any, where: str) -> ToolCall:
    call = parse_part(value, _Call, where)
    _is_function(call.type, where)
    called = parse_part(call.function, _CalledFunction, f"{where}.function")
    arguments = parse_object(called.arguments.encode(), f"{where}.function.arguments")
    return ToolCall(call.id, called.name, arguments)


def _tool(value: Any, where: str) -> dict[str, Any]:
    """The schema as the client gave it: templates show all of it."""
    tool = parse_part(value, _NamedTool, where)
    _is_function(tool.type, where)
    if parse_part(tool.function, _ToolFunction, f"{where}.function").strict:
        raise InvalidRequest(f"{where}.function.strict", True, "not supported: nothing holds answers to a schema")
    return {"type": "function", "function": tool.function}


def _is_function(kind: str, where: str) -> None:
    if kind != "function":
        raise InvalidRequest(f"{where}.type", kind, "must be function")


class ChatWording:
    """An answer to a chat, piece by piece. See `turn.Wording`."""

    id_prefix, chunk_object, whole_object = "chatcmpl-", "chat.completion.chunk", "chat.completion"

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes

    def logprobs(self, tokens: Sequence[TokenOutput]) -> dict[str, Any] | None:
        """Of tokens that follow one another."""
        return chat_logprobs(tokens, self._token_bytes)

    def opening(self) -> dict[str, Any]:
        """The first choice of a stream, before any text."""
        return _choice({"delta": {"role": "assistant", "content": ""}})

    def piece(self, text: str, logprobs: Mapping[str, Any] | None) -> dict[str, Any]:
        """Some text of a stream."""
        return _choice({"delta": {"content": text}}, logprobs)

    def ending(self, reason: str) -> dict[str, Any]:
        """The last choice of a stream."""
        return _choice({"delta": {}}, None, reason)

    def whole(self, text: str, logprobs: Mapping[str, Any] | None, reason: str) -> dict[str, Any]:
        """The choice of an answer that is not streamed."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return _choice({"message": message}, logprobs, reason)


def _choice(
    said: Mapping[str, Any], logprobs: Mapping[str, Any] | None = None, reason: str | None = None
) -> dict[str, Any]:
    return {"index": 0, **said, "logprobs": logprobs, "finish_reason": reason}
