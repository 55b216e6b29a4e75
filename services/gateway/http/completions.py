"""`/v1/completions`: text or token ids to a prompt, and an answer in the words of OpenAI's older API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.gateway.http.logprobs import LegacyLogprobs
from services.gateway.http.schema import TurnFields
from services.gateway.prompt import PromptInput
from services.gateway.token_bytes import TokenBytes
from swaa_runtime.errors import InvalidRequest
from swaa_runtime.outputs import TokenOutput
from swaa_runtime.request import SamplingParams

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, of this older API."""


class CompletionFields(TurnFields):
    """Of a request's body."""

    prompt: str | list[Any]
    logprobs: int | None = None

    def params(self) -> SamplingParams:
        """Raises InvalidRequest for a value out of bounds."""
        return self.sampling(DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens, self.logprobs)

    def as_prompt(self) -> PromptInput:
        """Text, or token ids; a list of one of these is that one. Raises InvalidRequest for anything else."""
        value: Any = self.prompt
        if isinstance(value, list) and value and isinstance(value[0], str | list):
            if len(value) > 1:
                raise InvalidRequest("prompt", f"{len(value)} prompts", "one prompt a request")
            value = value[0]
        if isinstance(value, str):
            return PromptInput(text=value)
        wrong = next((each for each in value if type(each) is not int), None)
        if wrong is not None:
            raise InvalidRequest("prompt", wrong, "must be text or token ids")
        return PromptInput(token_ids=tuple(value))


class CompletionWording:
    """A continued text, piece by piece. See `turn.Wording`."""

    id_prefix, chunk_object, whole_object = "cmpl-", "text_completion", "text_completion"

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._logprobs = LegacyLogprobs(token_bytes)

    def logprobs(self, tokens: Sequence[TokenOutput]) -> dict[str, Any] | None:
        """Of tokens that follow one another, and those that were asked for before."""
        return self._logprobs.next(tokens)

    def opening(self) -> dict[str, Any]:
        """The first choice of a stream, before any text."""
        return self.piece("", None)

    def piece(self, text: str, logprobs: Mapping[str, Any] | None) -> dict[str, Any]:
        """Some text of a stream."""
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": None}

    def ending(self, reason: str) -> dict[str, Any]:
        """The last choice of a stream."""
        return self.whole("", None, reason)

    def whole(self, text: str, logprobs: Mapping[str, Any] | None, reason: str) -> dict[str, Any]:
        """The choice of an answer that is not streamed."""
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}
