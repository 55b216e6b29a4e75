"""What the tests of quality are built from: a tokenizer of letters, results, and examples to train on."""

from __future__ import annotations

from typing import Any

from services.quality.examples import Example
from services.quality.recipes import Row
from services.quality.results import Key, Scored, Setting, Timed
from services.quality.tasks.sample import PromptBuilder
from swaa_runtime.recipe import Recipe
from tests.swaa_runtime.builders import random_tokens

ROWS = (Row("full", Recipe()), Row("slides", Recipe(window=8, sink_tokens=2, full_decode=True, full_tail=4)))


class LetterTokenizer:
    """Every character is a token; ids below 64 for the tiny models, so that letters share ids but lengths are exact."""

    chat_template = "none"

    def __call__(self, text: str | list[str], **_: Any) -> dict[str, Any]:
        if isinstance(text, list):
            return {"input_ids": [self._ids(item) for item in text]}
        return {"input_ids": self._ids(text)}

    def apply_chat_template(self, message: list[dict[str, str]], **_: Any) -> str:
        return f"[{message[0]['content']}]"

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(ord("0") + token_id) for token_id in token_ids)

    def _ids(self, text: str) -> list[int]:
        return [ord(letter) % 64 for letter in text]


class RecordingTokenizer(LetterTokenizer):
    """Keeps the last text that it made ids of."""

    def __init__(self) -> None:
        self.text = ""

    def apply_chat_template(self, message: list[dict[str, str]], **_: Any) -> str:
        self.text = message[0]["content"]
        return super().apply_chat_template(message)


def prompts() -> PromptBuilder:
    return PromptBuilder(LetterTokenizer())


def scored(recipe: str, task: str, length: int, index: int, score: float) -> Scored:
    row = next(row for row in ROWS if row.name == recipe)
    return Scored(Key(recipe, row.recipe.fingerprint(), task, length, index, 0), score, length, 5, "answer")


def timed(recipe: str, length: int, ttft_ms: float) -> Timed:
    row = next(row for row in ROWS if row.name == recipe)
    return Timed(recipe, row.recipe.fingerprint(), length, 0, ttft_ms, 4 << 20, 2 << 20, "a machine")


def setting(**changes: Any) -> Setting:
    values: dict[str, Any] = {
        "model": "tiny",
        "model_fingerprint": "f",
        "hardware": "a machine",
        "date": "2026-11-26",
        "command": "swaa eval run",
        "versions": {"torch": "2"},
        "recipes": {row.name: row.recipe.to_mapping() for row in ROWS},
    }
    return Setting(**(values | changes))


def example(prompt: int, answer: int, *more: int, seed: int = 0) -> Example:
    """Turns of so many prompt and answer tokens; an odd number at the end is a prompt without an answer."""
    lengths = (prompt, answer, *more)
    labels = [bool(at % 2) for at, length in enumerate(lengths) for _ in range(length)]
    return Example.from_labels(random_tokens(len(labels), seed), labels)
