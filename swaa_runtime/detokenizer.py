"""Token ids to text, incrementally, and stop strings. Text is only given out once later tokens cannot change it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Decoder(Protocol):
    """The part of a tokenizer that this needs."""

    def decode(self, token_ids: Any, skip_special_tokens: bool = ...) -> Any:
        """Text (str) of a list of token ids."""
        ...


class IncrementalDetokenizer:
    """Turns a stream of token ids into a stream of text.

    Text is held back while it ends in an incomplete UTF-8 character, or in what may become a stop string.
    """

    def __init__(self, decoder: Decoder, stop: Sequence[str] = ()) -> None:
        self._decoder = decoder
        self._stop = tuple(stop)
        self._token_ids: list[int] = []
        self._prefix = 0  # tokens before this are settled; decoding starts here so that merges stay right
        self._read = 0  # tokens before this have been turned into text
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Text that is certain after one more token. Sets `stopped` when a stop string is complete."""
        self._token_ids.append(token_id)
        before = self._decode(self._prefix, self._read)
        now = self._decode(self._prefix, len(self._token_ids))
        if now.endswith(REPLACEMENT) or len(now) <= len(before):
            return ""
        self._prefix, self._read = self._read, len(self._token_ids)
        self._held += now[len(before) :]
        return self._release()

    def finish(self) -> str:
        """What was held back, when no more tokens come; up to a stop string if there is one in it."""
        if self.stopped:
            return ""
        before = self._decode(self._prefix, self._read)
        now = self._decode(self._prefix, len(self._token_ids))
        self._prefix = self._read = len(self._token_ids)
        self._held += now[len(before) :]
        text = self._release()
        rest, self._held = "" if self.stopped else self._held, ""
        return text + rest

    def _decode(self, start: int, stop: int) -> str:
        text: str = self._decoder.decode(self._token_ids[start:stop], skip_special_tokens=True)
        return text

    def _release(self) -> str:
        cuts = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if cuts:
            self.stopped = True
            return self._held[: min(cuts)]
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        text = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that `text` ends with."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
