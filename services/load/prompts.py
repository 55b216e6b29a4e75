"""Prompts of a wanted length for a load: pieces of a real text, each from another place in it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Protocol

from services.pb.swaa.v1 import long_context_pb2 as pb

MEASURED_CHARACTERS = 4_000
"""Of the document, whose tokens the server is asked to count."""

INSTRUCTION = "\n\nGo on with this text.\n"


class Prompts(Protocol):
    """Makes prompts."""

    def make(self, index: int, num_tokens: int) -> pb.Prompt:
        """The prompt of the request of that number in the trace, about `num_tokens` long."""
        ...


@dataclass(frozen=True, slots=True)
class TextPrompts:
    """Text, as clients send it; the length is as exact as the document's tokens are even."""

    document: str
    characters_per_token: float
    seed: int = 0

    def make(self, index: int, num_tokens: int) -> pb.Prompt:
        """See `Prompts`."""
        length = max(1, round(num_tokens * self.characters_per_token) - len(INSTRUCTION))
        start = _start(self.seed, index, len(self.document))
        return pb.Prompt(text=_cycle(self.document, start, length) + INSTRUCTION)


@dataclass(frozen=True, slots=True)
class TokenPrompts:
    """Token ids of the document: exact, and no work for the server's tokenizer."""

    token_ids: Sequence[int]
    seed: int = 0

    def make(self, index: int, num_tokens: int) -> pb.Prompt:
        """See `Prompts`."""
        start = _start(self.seed, index, len(self.token_ids))
        return pb.Prompt(token_ids=_cycle(self.token_ids, start, num_tokens))


def document() -> str:
    """The text that ships with the service."""
    return files("services.cli").joinpath("data", "harbour_log.txt").read_text(encoding="utf-8")


async def text_prompts(stub: Any, seed: int, metadata: Sequence[tuple[str, str]] = ()) -> TextPrompts:
    """Prompts for a server whose tokenizer is not known: it is asked how many tokens a piece of the document has."""
    text = document()
    piece = text[:MEASURED_CHARACTERS]
    answer = await stub.Plan(pb.PlanRequest(prompt=pb.Prompt(text=piece), max_tokens=1), metadata=tuple(metadata))
    return TextPrompts(text, len(piece) / answer.prompt_tokens, seed)


def _start(seed: int, index: int, length: int) -> int:
    """No two prompts start alike, or saved KV of one would serve the other."""
    return random.Random(f"{seed}/{index}").randrange(length)


def _cycle(items: Any, start: int, length: int) -> Any:
    """`length` items from `start` on, from the beginning again after the end."""
    rotated = items[start:] + items[:start]
    repeats = -(-length // len(rotated))
    return (rotated * repeats)[:length]
