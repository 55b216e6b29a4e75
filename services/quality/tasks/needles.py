"""Needles in a haystack, RULER's four kinds: each a statement of a magic number, asked for by its key.

single: one needle. multi-key: several needles of different keys, one is asked for. multi-value: one key with several
numbers, all are wanted. multi-query: several keys, one number each, all are wanted.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from services.quality.tasks.filler import bury, fill, sentence
from services.quality.tasks.sample import Order, PromptBuilder, Sample

TOPICS = (
    "Lisbon", "Oslo", "Nairobi", "Kyoto", "Toronto", "Lima", "Prague", "Hanoi", "Dublin", "Cairo", "Warsaw", "Seattle",
    "Athens", "Helsinki", "Bogota", "Vienna", "Jakarta", "Madrid", "Sydney", "Boston",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Needles:
    """Needles among varied sentences.

    Attributes:
        name: of the task, without the question's place.
        num_keys: keys in the text; num_asked: keys that are asked for; num_values: numbers of each key.
        value_digits: RULER has 7; a small model spells 4 more surely, so that attention is what is measured.
        order: where the question stands.
    """

    name: str
    num_keys: int = 1
    num_asked: int = 1
    num_values: int = 1
    value_digits: int = 4
    order: Order = "end"

    def sample(self, prompts: PromptBuilder, num_tokens: int, rng: random.Random) -> Sample:
        """See Task.sample."""
        keys = rng.sample(TOPICS, self.num_keys)
        numbers = rng.sample(
            range(10 ** (self.value_digits - 1), 10**self.value_digits), self.num_keys * self.num_values
        )
        values = {key: numbers[at * self.num_values :][: self.num_values] for at, key in enumerate(keys)}
        asked = rng.sample(keys, self.num_asked)
        needles = [_statement(key, value) for key in keys for value in values[key]]
        rng.shuffle(needles)
        question = self._question(asked)
        budget = prompts.fit(num_tokens, " ".join(needles), question, self.order)
        filler = fill(prompts, budget, lambda: sentence(rng))
        context = " ".join(bury(needles, filler, rng))
        references = [str(value) for key in asked for value in values[key]]
        return prompts.sample(context, question, self.order, references, 12 + 12 * len(references))

    def _question(self, asked: list[str]) -> str:
        where = "in the text below" if self.order == "start" else "in the text above"
        if self.order == "both":
            where = "in the text"
        if self.num_values > 1:
            return f"What are all the special magic numbers for {asked[0]} mentioned {where}?"
        if len(asked) > 1:
            return f"What are the special magic numbers for {', '.join(asked[:-1])} and {asked[-1]} mentioned {where}?"
        return f"What is the special magic number for {asked[0]} mentioned {where}?"


def _statement(key: str, value: int) -> str:
    return f"The special magic number for {key} is {value}."
