"""Teacher-forced examples: tokens, and which of them are answers. Turns come from these labels, never from a count."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from swaa_runtime.errors import InvalidRequest
from swaa_runtime.visibility import Turn


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation with its answers.

    Attributes:
        token_ids: prompts and answers in order, as an engine would have computed them.
        answer_spans: half-open ranges of the tokens that are answers (generated), in order; at least one.
        task: what kind of question it is, for statistics.

    Raises:
        InvalidRequest: on construction, for spans that are empty, out of order, out of range or without a prompt.
    """

    token_ids: tuple[int, ...]
    answer_spans: tuple[tuple[int, int], ...]
    task: str = ""

    def __post_init__(self) -> None:
        at = 0
        for start, stop in self.answer_spans:
            if not at < start < stop <= len(self.token_ids):
                raise InvalidRequest(
                    "answer_spans",
                    (start, stop),
                    f"must follow a prompt, in order, within {len(self.token_ids)} tokens",
                )
            at = stop
        if not self.answer_spans:
            raise InvalidRequest("answer_spans", "", "an example needs at least one answer")

    @classmethod
    def from_labels(cls, token_ids: Sequence[int], is_answer: Sequence[bool], task: str = "") -> Example:
        """From one label a token; each run of answer tokens is a span."""
        if len(token_ids) != len(is_answer):
            raise InvalidRequest(
                "is_answer", len(is_answer), f"must have one label for each of {len(token_ids)} tokens"
            )
        spans, at = [], 0
        for answer, run in groupby(is_answer):
            length = len(list(run))
            if answer:
                spans.append((at, at + length))
            at += length
        return cls(tuple(token_ids), tuple(spans), task)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Each answer with the prompt before it; what follows the last answer is a prompt not answered yet."""
        turns, start = [], 0
        for generated_start, stop in self.answer_spans:
            turns.append(Turn(start, generated_start, stop))
            start = stop
        if start < len(self.token_ids):
            turns.append(Turn(start, len(self.token_ids)))
        return tuple(turns)

    @property
    def num_answer_tokens(self) -> int:
        """Tokens that are answers, over all spans."""
        return sum(stop - start for start, stop in self.answer_spans)


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        for example in examples:
            file.write(
                json.dumps({"token_ids": example.token_ids, "answers": example.answer_spans, "task": example.task})
            )
            file.write("\n")


def read_examples(path: Path) -> list[Example]:
    """What `write_examples` wrote. Raises InvalidRequest naming the line that is not an example."""
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            item: dict[str, Any] = json.loads(line)
            spans = tuple((int(start), int(stop)) for start, stop in item["answers"])
            examples.append(Example(tuple(map(int, item["token_ids"])), spans, str(item["task"])))
        except (ValueError, KeyError, TypeError) as exc:
            raise InvalidRequest(
                f"{path.name}:{number}", line, "must be an example as `swaa distill` writes it"
            ) from exc
    return examples
