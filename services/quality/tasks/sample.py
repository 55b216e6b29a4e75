"""A sample: a prompt of known length, what a right answer contains, and how an answer is scored.

The score is RULER's string match: the share of the references that appear in the answer, letter case aside; for
questions with alternative answers, whether one of them appears.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

Order = Literal["end", "start", "both"]
"""Where the question stands: after the text, before it, or on either side of it."""

Match = Literal["all", "any"]

THINK_FIRST = "Think step by step: first find and quote what the text says about it, then answer."
THINKING_TOKENS = 96
"""Generated tokens that chain of thought gets on top of the answer's."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt. `match`: whether all references are wanted or any one of them."""

    token_ids: tuple[int, ...]
    references: tuple[str, ...]
    max_new_tokens: int
    match: Match = "all"

    def score(self, answer: str) -> float:
        """How much of what is wanted the answer contains, 0..1."""
        found = [reference.lower() in answer.lower() for reference in self.references]
        return float(any(found)) if self.match == "any" else sum(found) / len(found)


@runtime_checkable
class Task(Protocol):
    """Makes samples. The same `rng` state makes the same sample."""

    @property
    def name(self) -> str:
        """Names the task in results; different prompts have different names."""
        ...

    def sample(self, prompts: PromptBuilder, num_tokens: int, rng: random.Random) -> Sample:
        """A sample whose prompt has at most `num_tokens` tokens, and hardly fewer."""
        ...


class FileTask(Protocol):
    """A task whose samples come from a file, so that their number is given."""

    @property
    def name(self) -> str:
        """Names the task in results."""
        ...

    def __len__(self) -> int:
        """How many samples there are."""
        ...

    def sample_at(self, prompts: PromptBuilder, num_tokens: int, index: int) -> Sample:
        """Sample `index`, its context cut in the middle to a prompt of `num_tokens` tokens if it is longer."""
        ...


class ContextTooShort(ValueError):
    """A prompt of so few tokens has no room for what is asked."""


@dataclass(frozen=True, slots=True)
class PromptBuilder:
    """Texts to token ids, by the model's chat template.

    Args:
        tokenizer: a transformers tokenizer.
        thinking: ask for chain of thought, by the template if it has a switch for it, else by a sentence at the end.
    """

    tokenizer: Any
    thinking: bool = False

    @property
    def has_thinking_template(self) -> bool:
        """Whether the model's chat template knows `enable_thinking`."""
        return "enable_thinking" in str(getattr(self.tokenizer, "chat_template", None) or "")

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text alone."""
        if not texts:
            return []
        return [len(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    def ids(self, content: str) -> tuple[int, ...]:
        """One user message as the model is to read it."""
        extra = {"enable_thinking": self.thinking} if self.has_thinking_template else {}
        message = [{"role": "user", "content": content}]
        text = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, **extra)
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def content(self, context: str, question: str, order: Order) -> str:
        """Text and question in the order asked for."""
        if self.thinking and not self.has_thinking_template:
            question = f"{question} {THINK_FIRST}"
        before = f"{question}\n\n" if order in ("start", "both") else ""
        after = f"\n\n{question}" if order in ("end", "both") else ""
        return f"{before}{context}{after}"

    def fit(self, num_tokens: int, context: str, question: str, order: Order) -> int:
        """Tokens left of `num_tokens` beside this context and question.

        Raises:
            ContextTooShort: if there are none.
        """
        left = num_tokens - len(self.ids(self.content(context, question, order)))
        if left < 0:
            raise ContextTooShort(f"{num_tokens} tokens are {-left} too few for the question and what it asks for")
        return left

    def sample(
        self,
        context: str,
        question: str,
        order: Order,
        references: Sequence[str],
        max_new_tokens: int,
        match: Match = "all",
    ) -> Sample:
        """The sample of a finished context."""
        return Sample(
            self.ids(self.content(context, question, order)),
            tuple(references),
            max_new_tokens + (THINKING_TOKENS if self.thinking else 0),
            match,
        )

    def with_thinking(self, thinking: bool) -> PromptBuilder:
        """The same, asking for chain of thought or not."""
        return replace(self, thinking=thinking)
