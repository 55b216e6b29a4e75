"""Questions on real text, after RULER's QA: the passage that answers lies among others that do not.

The text is what ships with the project and with Python: entries of the demo's harbour log, whose answers are known,
and, as further passages, Python's language reference as `pydoc_data` has it. That depends on the Python version, which
results name.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import cycle

from services.quality.tasks.filler import bury, fill
from services.quality.tasks.sample import Order, PromptBuilder, Sample

LEAST_PASSAGE_CHARS = 200
LEAST_PASSAGE_TOKENS = 30


@dataclass(frozen=True, slots=True)
class Question:
    """A question, any of the answers that are right, and the passage that has it."""

    text: str
    answers: tuple[str, ...]
    passage: str


@dataclass(frozen=True, slots=True)
class Passages:
    """One question, its passage and as many others as fit. Half of the others are of the same log while it lasts."""

    name: str = "passages"
    order: Order = "end"

    def sample(self, prompts: PromptBuilder, num_tokens: int, rng: random.Random) -> Sample:
        """See Task.sample."""
        question = rng.choice(questions())
        asked = f"Answer from the passages, in a few words. {question.text}"
        related = [entry for entry in log_entries().values() if not _answers(entry, question)]
        others = [passage for passage in reference_passages() if not _answers(passage, question)]
        rng.shuffle(related)
        rng.shuffle(others)
        pairs = [passage for pair in zip(related, others, strict=False) for passage in pair]
        pool = cycle(pairs + others[len(related) :])
        budget = prompts.fit(num_tokens, question.passage, asked, self.order)
        filler = fill(prompts, budget, lambda: next(pool), separator="\n\n", least_piece_tokens=LEAST_PASSAGE_TOKENS)
        context = "\n\n".join(bury([question.passage], filler, rng))
        return prompts.sample(context, asked, self.order, question.answers, 24, match="any")


@cache
def log_entries() -> dict[str, str]:
    """Entries of the harbour log by their date."""
    text = files("services.cli").joinpath("data", "harbour_log.txt").read_text(encoding="utf-8")
    paragraphs = [paragraph.strip() for paragraph in text.split("\n\n")]
    return {paragraph.partition(".")[0]: paragraph for paragraph in paragraphs if "." in paragraph.split("\n")[0]}


@cache
def questions() -> tuple[Question, ...]:
    """Questions on the log whose answers are known."""
    data = json.loads(files("services.quality").joinpath("data", "port_questions.json").read_text(encoding="utf-8"))
    entries = log_entries()
    return tuple(
        Question(item["question"], tuple(item["answers"]), entries[item["entry"]]) for item in data["questions"]
    )


@cache
def reference_text() -> str:
    """Python's language reference, as this Python ships it."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


@cache
def reference_passages() -> tuple[str, ...]:
    """Its paragraphs that are long enough to be read as text."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in reference_text().split("\n\n"))
    return tuple(paragraph for paragraph in paragraphs if len(paragraph) >= LEAST_PASSAGE_CHARS)


def _answers(passage: str, question: Question) -> bool:
    words: Sequence[str] = question.answers
    return passage == question.passage or any(word.lower() in passage.lower() for word in words)
