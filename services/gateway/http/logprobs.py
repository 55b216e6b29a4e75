"""Log-probabilities in the two shapes that OpenAI's APIs have for them. Each token generated has its entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.gateway.token_bytes import TokenBytes
from swaa_runtime.outputs import TokenOutput

LEAST = -9999.0
"""What stands for a probability of 0: JSON has no infinity. OpenAI's own number."""


def chat_logprobs(tokens: Sequence[TokenOutput], token_bytes: TokenBytes) -> dict[str, Any] | None:
    """Text, bytes and alternatives of each token; None if there are no log-probabilities."""
    content = []
    for token in tokens:
        if token.logprob is None:
            continue
        top = zip(token.logprob.top_token_ids, token.logprob.top_logprobs, strict=True)
        alternatives = [_entry(token_id, logprob, token_bytes) for token_id, logprob in top]
        content.append({**_entry(token.token_id, token.logprob.logprob, token_bytes), "top_logprobs": alternatives})
    return {"content": content, "refusal": None} if content else None


def _entry(token_id: int, logprob: float, token_bytes: TokenBytes) -> dict[str, Any]:
    data = token_bytes.of(token_id)
    return {"token": data.decode("utf-8", "replace"), "logprob": max(logprob, LEAST), "bytes": list(data)}


class LegacyLogprobs:
    """Lists of what belongs together. It counts characters, so ask for tokens in their order."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._said = b""  # the end of the text that is no whole character yet
        self._offset = 0

    def next(self, tokens: Sequence[TokenOutput]) -> dict[str, Any] | None:
        """Of the next tokens; None if there are no log-probabilities."""
        known = [(token, token.logprob) for token in tokens if token.logprob is not None]
        if not known:
            return None
        texts, offsets, own, tops = [], [], [], []
        for token, logprob in known:
            texts.append(self._name(token.token_id))
            offsets.append(self._offset)
            own.append(max(logprob.logprob, LEAST))
            top = zip(logprob.top_token_ids, logprob.top_logprobs, strict=True)
            named = {self._name(token_id): max(value, LEAST) for token_id, value in top}
            tops.append({**named, texts[-1]: own[-1]})
            self._advance(self._token_bytes.of(token.token_id))
        return {"tokens": texts, "token_logprobs": own, "top_logprobs": tops, "text_offset": offsets}

    def _name(self, token_id: int) -> str:
        data = self._token_bytes.of(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:  # a part of a character; OpenAI writes it so, and no two look alike
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _advance(self, data: bytes) -> None:
        self._said += data
        try:
            self._offset += len(self._said.decode())
        except UnicodeDecodeError:
            if len(self._said) < 4:
                return
            self._offset += len(self._said.decode("utf-8", "replace"))
        self._said = b""
