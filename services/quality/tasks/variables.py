"""Variable tracking, after RULER: a chain of assignments is laid into the text; which variables hold the value?"""

from __future__ import annotations

import random
import string
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise

from services.quality.tasks.filler import bury, fill, sentence
from services.quality.tasks.sample import Order, PromptBuilder, Sample


@dataclass(frozen=True, slots=True)
class VariableTracking:
    """One chain of `num_hops` assignments after the first, and `num_chains - 1` others that distract.

    Attributes:
        num_hops: RULER has 4; a model of 135M parameters follows hardly one.
        name_letters: letters of a variable's name, RULER has 5; 3 are one or two tokens each.
    """

    name: str = "variable_tracking"
    num_chains: int = 1
    num_hops: int = 1
    name_letters: int = 3
    value_digits: int = 5
    order: Order = "end"

    def sample(self, prompts: PromptBuilder, num_tokens: int, rng: random.Random) -> Sample:
        """See Task.sample."""
        length = self.num_hops + 1
        names = self._names(rng, self.num_chains * length)
        values = rng.sample(range(10 ** (self.value_digits - 1), 10**self.value_digits), self.num_chains)
        chains = [names[at * length : (at + 1) * length] for at in range(self.num_chains)]
        statements = [_assignments(chain, value) for chain, value in zip(chains, values, strict=True)]
        merged = _interleave(statements, rng)
        question = _question(values[0])
        example = self._example(rng, set(names)) + "\n\nText: "
        budget = prompts.fit(num_tokens, example + " ".join(merged), question, self.order)
        filler = fill(prompts, budget, lambda: sentence(rng))
        context = example + " ".join(bury(merged, filler, rng))
        return prompts.sample(context, question, self.order, chains[0], 24 + 8 * length)

    def _example(self, rng: random.Random, taken: Collection[str]) -> str:
        """A chain in one sentence of filler with its answer, as RULER gives one."""
        chain = self._names(rng, self.num_hops + 1, taken)
        value = 10**self.value_digits // 9
        text = " ".join([sentence(rng), *_assignments(chain, value)])
        return f"Example text: {text}\n{_question(value)}\nThe variables are: {', '.join(chain)}."

    def _names(self, rng: random.Random, count: int, taken: Collection[str] = ()) -> list[str]:
        names: set[str] = set()
        while len(names) < count:
            name = "".join(rng.choices(string.ascii_uppercase, k=self.name_letters))
            if name not in taken:
                names.add(name)
        ordered = sorted(names)
        rng.shuffle(ordered)
        return ordered


def _question(value: int) -> str:
    return f"Which variables are assigned the value {value}, directly or through another variable? List their names."


def _assignments(chain: list[str], value: int) -> list[str]:
    first = f"VAR {chain[0]} = {value}."
    return [first, *(f"VAR {name} = VAR {source}." for source, name in pairwise(chain))]


def _interleave(lists: list[list[str]], rng: random.Random) -> list[str]:
    """All items, those of one list in their order."""
    order = [at for at, items in enumerate(lists) for _ in items]
    rng.shuffle(order)
    iterators = [iter(items) for items in lists]
    return [next(iterators[at]) for at in order]
