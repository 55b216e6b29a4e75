"""Prompt to token ids: text, ids or chat messages; a first turn or one more. Needs a tokenizer, not a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from services.gateway.limits import MAX_PROMPT_BYTES
from swaa_runtime.detokenizer import Decoder
from swaa_runtime.errors import InvalidRequest, ModelNotSupported

ROLES = ("system", "user", "assistant", "tool")

_QUESTION, _ANSWER = "\x02question\x03", "\x02answer\x03"  # appear in no prompt, so they can be found again


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class PromptInput:
    """What the client sent. Exactly one of the three is not empty."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    messages: tuple[ChatMessage, ...] = ()

    def check(self, max_bytes: int = MAX_PROMPT_BYTES) -> None:
        """Raise InvalidRequest unless exactly one form is given and it is within bounds."""
        given = [name for name in ("text", "token_ids", "messages") if getattr(self, name)]
        if not given:
            raise InvalidRequest("prompt", "", "must not be empty: give text, token_ids or messages")
        if len(given) > 1:
            raise InvalidRequest("prompt", " and ".join(given), "give exactly one of text, token_ids and messages")
        for index, message in enumerate(self.messages):
            if message.role not in ROLES:
                raise InvalidRequest(
                    f"prompt.messages[{index}].role", message.role, f"must be one of {', '.join(ROLES)}"
                )
            if not message.content:
                raise InvalidRequest(f"prompt.messages[{index}].content", "", "must not be empty")
        size = len(self.text.encode()) + sum(len(message.content.encode()) for message in self.messages)
        if size > max_bytes:
            raise InvalidRequest("prompt", f"{size} bytes", f"must be at most {max_bytes} bytes")


class PromptEncoder:
    """A model's tokenizer and chat template. Stateless between calls; safe to use from several threads."""

    def __init__(self, tokenizer: Any, vocab_size: int, max_model_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_model_tokens = max_model_tokens

    @classmethod
    def from_folder(cls, folder: Path, vocab_size: int, max_model_tokens: int) -> PromptEncoder:
        """Load the tokenizer of a Hugging Face model folder."""
        return cls(AutoTokenizer.from_pretrained(folder), vocab_size, max_model_tokens)

    @property
    def decoder(self) -> Decoder:
        """The tokenizer, for whoever turns ids into text."""
        decoder: Decoder = self._tokenizer
        return decoder

    def encode(self, prompt: PromptInput, history_token_ids: Sequence[int], thinking: bool = False) -> list[int]:
        """Token ids that the prompt adds to the history.

        Raises:
            InvalidRequest: for an id outside the vocabulary, or more tokens than the model takes.
            ModelNotSupported: for messages without a chat template, or thinking that the template does not know.
        """
        if prompt.token_ids:
            token_ids = list(prompt.token_ids)
            for index, token_id in enumerate(token_ids):
                if not 0 <= token_id < self._vocab_size:
                    raise InvalidRequest(
                        f"prompt.token_ids[{index}]", token_id, f"must be in 0..{self._vocab_size - 1}"
                    )
        elif prompt.messages:
            text = self._render(prompt.messages, history_token_ids, thinking)
            token_ids = self._tokenize(text, special=False)
        else:
            token_ids = self._tokenize(prompt.text, special=not history_token_ids)
        if not token_ids:
            raise InvalidRequest("prompt", "", "must have at least one token")
        total = len(history_token_ids) + len(token_ids)
        if total >= self._max_model_tokens:
            raise InvalidRequest(
                "prompt",
                f"{len(token_ids)} tokens after {len(history_token_ids)} of history",
                f"history and prompt must be under {self._max_model_tokens} tokens",
            )
        return token_ids

    def _tokenize(self, text: str, *, special: bool) -> list[int]:
        encoded = self._tokenizer(text, add_special_tokens=special, verbose=False)
        return list(encoded["input_ids"])

    def _render(self, messages: Sequence[ChatMessage], history_token_ids: Sequence[int], thinking: bool) -> str:
        template = self._tokenizer.chat_template
        if template is None:
            raise ModelNotSupported("the model has no chat template; send text or token ids")
        if thinking and "enable_thinking" not in template:
            raise ModelNotSupported("the recipe asks for thinking, which the model's chat template does not know")
        new = [{"role": message.role, "content": message.content} for message in messages]
        if not history_token_ids:
            return self._apply(new, thinking, True)
        return self._after_answer(new, thinking, history_token_ids[-1])

    def _after_answer(self, new: list[dict[str, str]], thinking: bool, last_token_id: int) -> str:
        """What the template puts after an answer for new messages: the difference of two renderings.

        The answer's own end marker is part of it, unless the model wrote it already as its last token.
        """
        old = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
        longer = self._apply([*old, *new], thinking, True)
        head, found, tail = longer.partition(_ANSWER)
        if not found or _QUESTION not in head:
            raise ModelNotSupported("the model's chat template drops earlier turns; it cannot continue a session")
        end = self._tokenizer.eos_token
        if end and last_token_id == self._tokenizer.eos_token_id and tail.startswith(end):
            tail = tail[len(end) :]
        return tail

    def _apply(self, messages: list[dict[str, str]], thinking: bool, generate: bool) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generate, enable_thinking=thinking
            )
        except Exception as exc:  # templates raise whatever they like, by jinja's raise_exception
            raise InvalidRequest(
                "prompt.messages", f"{len(messages)} messages", f"the chat template refuses: {exc}"
            ) from exc
        return text
