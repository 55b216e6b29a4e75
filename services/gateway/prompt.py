"""Prompt to token ids: text, ids or chat messages; a first turn or one more. Needs a tokenizer, not a model."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from services.gateway.limits import MAX_MESSAGES, MAX_PROMPT_BYTES
from services.gateway.template import BoundedTemplate
from services.gateway.token_bytes import TokenBytes
from swaa_runtime.detokenizer import Decoder
from swaa_runtime.errors import InvalidRequest, ModelNotSupported
from swaa_runtime.model.files import DATA_ONLY

MAX_CHARACTERS_PER_TOKEN = 256
"""No vocabulary that is supported has longer tokens; English has some four characters in one."""

ROLES = ("system", "user", "assistant", "tool")

_QUESTION, _ANSWER = "\x02question\x03", "\x02answer\x03"  # appear in no prompt, so they can be found again


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that an earlier answer made; `arguments` by name, any JSON."""

    call_id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation.

    Attributes:
        tool_calls: what an assistant's message called; then `content` may be empty.
        tool_call_id: which call a tool's message answers; empty if it does not say.
        name: whose message it is, for templates that show it.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""

    def to_template(self) -> dict[str, Any]:
        """The message as chat templates expect it; what it does not say is left out."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [
                {"type": "function", "id": call.call_id, "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        if self.tool_call_id:
            message["tool_call_id"] = self.tool_call_id
        if self.name:
            message["name"] = self.name
        return message


@dataclass(frozen=True, slots=True)
class Tools:
    """Tools that the model may call, for its chat template to show.

    Attributes:
        schemas: `{"type": "function", "function": {...}}` each.
        choice: "auto", "none", "required", or one function as `{"type": "function", "function": {"name": ...}}`.
    """

    schemas: tuple[Mapping[str, Any], ...] = ()
    choice: str | Mapping[str, Any] = "auto"


@dataclass(frozen=True, slots=True)
class PromptInput:
    """What the client sent. Exactly one of the first three is not empty; `tools` only go with messages."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    messages: tuple[ChatMessage, ...] = ()
    tools: Tools = field(default_factory=Tools)

    def check(self, max_bytes: int = MAX_PROMPT_BYTES) -> None:
        """Raise InvalidRequest unless exactly one form is given and it is within bounds."""
        given = [name for name in ("text", "token_ids", "messages") if getattr(self, name)]
        if not given:
            raise InvalidRequest("prompt", "", "must not be empty: give text, token_ids or messages")
        if len(given) > 1:
            raise InvalidRequest("prompt", " and ".join(given), "give exactly one of text, token_ids and messages")
        if len(self.messages) > MAX_MESSAGES:
            raise InvalidRequest("prompt.messages", f"{len(self.messages)} messages", f"must be at most {MAX_MESSAGES}")
        for index, message in enumerate(self.messages):
            if message.role not in ROLES:
                raise InvalidRequest(
                    f"prompt.messages[{index}].role", message.role, f"must be one of {', '.join(ROLES)}"
                )
            if not message.content and not message.tool_calls:
                raise InvalidRequest(f"prompt.messages[{index}].content", "", "must not be empty")
        size = len(self.text.encode()) + sum(len(message.content.encode()) for message in self.messages)
        calls = [call.arguments for message in self.messages for call in message.tool_calls]
        size += sum(len(json.dumps(value).encode()) for value in (*calls, *self.tools.schemas))
        if size > max_bytes:
            raise InvalidRequest("prompt", f"{size} bytes", f"must be at most {max_bytes} bytes")


class PromptEncoder:
    """A model's tokenizer and chat template. Stateless between calls; safe to use from several threads."""

    def __init__(
        self, tokenizer: Any, vocab_size: int, max_model_tokens: int, render: Callable[..., str] | None = None
    ) -> None:
        """`render`: the tokenizer's chat template, see `BoundedTemplate.render`; None: as the tokenizer itself does."""
        self._tokenizer = tokenizer
        self._render_template = render or functools.partial(tokenizer.apply_chat_template, tokenize=False)
        self._vocab_size = vocab_size
        self._max_model_tokens = max_model_tokens

    @classmethod
    def from_folder(cls, folder: Path, vocab_size: int, max_model_tokens: int) -> PromptEncoder:
        """Load the tokenizer of a Hugging Face model folder."""
        tokenizer = AutoTokenizer.from_pretrained(folder, **DATA_ONLY)
        return cls(tokenizer, vocab_size, max_model_tokens, BoundedTemplate(tokenizer).render)

    @property
    def decoder(self) -> Decoder:
        """The tokenizer, for whoever turns ids into text."""
        decoder: Decoder = self._tokenizer
        return decoder

    def token_bytes(self) -> TokenBytes:
        """What single tokens say. Raises AttributeError for a tokenizer that is not one of the fast ones."""
        return TokenBytes(self._tokenizer)

    def encode(self, prompt: PromptInput, history_token_ids: Sequence[int], thinking: bool = False) -> list[int]:
        """Token ids that the prompt adds to the history.

        Raises:
            InvalidRequest: for an id outside the vocabulary, or more tokens than the model takes.
            ModelNotSupported: for messages without a chat template, or thinking that the template does not know.
        """
        self._check_size(prompt, len(history_token_ids))
        if prompt.token_ids:
            token_ids = list(prompt.token_ids)
            for token_id in (min(token_ids), max(token_ids)):
                if not 0 <= token_id < self._vocab_size:
                    index = token_ids.index(token_id)
                    raise InvalidRequest(
                        f"prompt.token_ids[{index}]", token_id, f"must be in 0..{self._vocab_size - 1}"
                    )
        elif prompt.messages:
            text = self._render(prompt, history_token_ids, thinking)
            token_ids = self._tokenize(text, special=False)
        else:
            token_ids = self._tokenize(prompt.text, special=not history_token_ids)
        if not token_ids:
            raise InvalidRequest("prompt", "", "must have at least one token")
        total = len(history_token_ids) + len(token_ids)
        if total >= self._max_model_tokens:
            raise self._too_long(len(token_ids), len(history_token_ids))
        return token_ids

    def _check_size(self, prompt: PromptInput, history_tokens: int) -> None:
        """Refuse what cannot fit, however it is cut into tokens: cutting it would take minutes, and gigabytes.

        Raises:
            InvalidRequest: for as many ids as the model takes or more, or so much text.
        """
        longest = max(len(prompt.text), *(len(message.content) for message in prompt.messages), 0)
        most = self._max_model_tokens * MAX_CHARACTERS_PER_TOKEN
        if longest > most:
            raise InvalidRequest(
                "prompt",
                f"{longest} characters",
                f"must be at most {most}: the model takes {self._max_model_tokens} tokens",
            )
        if history_tokens + len(prompt.token_ids) >= self._max_model_tokens:
            raise self._too_long(len(prompt.token_ids), history_tokens)

    def _too_long(self, num_tokens: int, history_tokens: int) -> InvalidRequest:
        return InvalidRequest(
            "prompt",
            f"{num_tokens} tokens after {history_tokens} of history",
            f"history and prompt must be under {self._max_model_tokens} tokens",
        )

    def _tokenize(self, text: str, *, special: bool) -> list[int]:
        encoded = self._tokenizer(text, add_special_tokens=special, verbose=False)
        return list(encoded["input_ids"])

    def _render(self, prompt: PromptInput, history_token_ids: Sequence[int], thinking: bool) -> str:
        if self._tokenizer.chat_template is None:
            raise ModelNotSupported("the model has no chat template; send text or token ids")
        if thinking and not self._knows("enable_thinking"):
            raise ModelNotSupported("the recipe asks for thinking, which the model's chat template does not know")
        if any(message.tool_calls for message in prompt.messages) and not self._knows("tool_calls"):
            raise ModelNotSupported("messages have tool_calls, which the model's chat template does not know")
        tools = self._tool_options(prompt.tools)
        new = [message.to_template() for message in prompt.messages]
        if not history_token_ids:
            return self._apply(new, thinking, tools)
        if tools:
            raise InvalidRequest("tools", f"{len(prompt.tools.schemas)} tools", "give them in a session's first turn")
        return self._after_answer(new, thinking, history_token_ids[-1])

    def _knows(self, variable: str) -> bool:
        return variable in str(self._tokenizer.chat_template)  # a model may have several templates, by name

    def _tool_options(self, tools: Tools) -> dict[str, Any]:
        """What the template is told of tools. Raises ModelNotSupported for what it cannot tell the model."""
        if not tools.schemas or tools.choice == "none":
            return {}
        if not self._knows("tools"):
            raise ModelNotSupported("the model's chat template does not know tools")
        options: dict[str, Any] = {"tools": [dict(schema) for schema in tools.schemas]}
        if self._knows("tool_choice"):
            return {**options, "tool_choice": tools.choice}
        if tools.choice != "auto":
            raise ModelNotSupported(
                f"tool_choice is {tools.choice!r}: the model's chat template knows no choice, only 'auto' and 'none'"
            )
        return options

    def _after_answer(self, new: list[dict[str, Any]], thinking: bool, last_token_id: int) -> str:
        """What the template puts after an answer for new messages: the difference of two renderings.

        The answer's own end marker is part of it, unless the model wrote it already as its last token.
        """
        old = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
        longer = self._apply([*old, *new], thinking, {})
        head, found, tail = longer.partition(_ANSWER)
        if not found or _QUESTION not in head:
            raise ModelNotSupported("the model's chat template drops earlier turns; it cannot continue a session")
        end = self._tokenizer.eos_token
        if end and last_token_id == self._tokenizer.eos_token_id and tail.startswith(end):
            tail = tail[len(end) :]
        return tail

    def _apply(self, messages: list[dict[str, Any]], thinking: bool, tools: Mapping[str, Any]) -> str:
        try:
            return self._render_template(messages, add_generation_prompt=True, enable_thinking=thinking, **tools)
        except Exception as exc:  # templates raise whatever they like, by jinja's raise_exception
            raise InvalidRequest(
                "prompt.messages", f"{len(messages)} messages", f"the chat template refuses: {exc}"
            ) from exc
