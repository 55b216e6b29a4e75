"""Prompts to calibrate and to train on: the kinds of question that `swaa eval` asks, in other words.

Evaluation must not meet what training saw. So keys, fillers and word lists here share nothing with those of
`services.quality.tasks` but English, several phrasings take turns, and the random streams have a salt of their own.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from services.quality.practice_words import CARGO, DO, KEYS, MORE_WORDS, NAMES, PLACES, SHIPS, SO, THINGS, WHENCE
from services.quality.tasks.filler import bury, fill
from services.quality.tasks.sample import PromptBuilder, Sample

SALT = "practice"


@dataclass(frozen=True, slots=True)
class Practice:
    """A prompt with what a right answer contains, and one right answer written out."""

    task: str
    sample: Sample
    reference_answer: str


@dataclass(frozen=True, slots=True)
class Ask:
    """What a practice task lays into the filler and asks for.

    Attributes:
        pieces: statements, in the order they must have.
        references: what a right answer contains; answer: one written out.
        filler: draws a piece of other text; separator: between pieces.
    """

    pieces: Sequence[str]
    question: str
    references: Sequence[str]
    answer: str
    filler: Callable[[], str]
    separator: str = " "


def make_practice(prompts: PromptBuilder, task: str, num_tokens: int, seed: int, index: int) -> Practice:
    """Practice prompt number `index` of a task: the same for the same arguments.

    Raises:
        KeyError: for a task that is not in `PRACTICE_TASKS`.
        ContextTooShort: if `num_tokens` leave no room for what is asked.
    """
    rng = random.Random(f"{SALT}/{seed}/{task}/{num_tokens}/{index}")
    if task == "common_words":
        return _common_words(prompts, num_tokens, rng)
    ask = _ASKS[task](rng)
    budget = prompts.fit(num_tokens, ask.separator.join(ask.pieces), ask.question, "end")
    filler = fill(prompts, budget, ask.filler, separator=ask.separator)
    context = ask.separator.join(bury(ask.pieces, filler, rng))
    sample = prompts.sample(context, ask.question, "end", ask.references, 32 + 16 * len(ask.references))
    return Practice(task, sample, ask.answer)


def sentence(rng: random.Random) -> str:
    """One sentence of filler, of words and shapes that evaluation's has not."""
    name, thing, place = rng.choice(NAMES), rng.choice(THINGS), rng.choice(PLACES)
    shape = rng.randrange(3)
    if shape == 0:
        return f"{rng.choice(WHENCE)} {name} {rng.choice(DO)} {thing} {place}."
    if shape == 1:
        return f"{name} {rng.choice(DO)} {thing}, {rng.choice(SO)}."
    return f"There was {thing} {place}, {rng.choice(SO)}, and {name} {rng.choice(DO)} it."


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _needles(num_keys: int, num_asked: int, num_values: int) -> Callable[[random.Random], Ask]:
    def ask(rng: random.Random) -> Ask:
        keys = rng.sample(KEYS, num_keys)
        digits = rng.choice((4, 4, 5))
        kind = rng.choice(("special magic number", "special magic number", "secret code", "locker number"))
        numbers = [str(n) for n in rng.sample(range(10 ** (digits - 1), 10**digits), num_keys * num_values)]
        values = {key: numbers[at * num_values :][:num_values] for at, key in enumerate(keys)}
        asked = rng.sample(keys, num_asked)
        pieces = [f"The {kind} for {key} is {value}." for key in keys for value in values[key]]
        rng.shuffle(pieces)
        wanted = [value for key in asked for value in values[key]]
        if num_values > 1:
            question = f"What are all the {kind}s for {asked[0]} mentioned in the text above?"
            answer = f"The {kind}s for {asked[0]} mentioned in the text above are {_listed(wanted)}."
        elif num_asked > 1:
            question = f"What are the {kind}s for {_listed(asked)} mentioned in the text above?"
            answer = " ".join(f"The {kind} for {key} is {values[key][0]}." for key in asked)
        else:
            question = f"What is the {kind} for {asked[0]} mentioned in the text above?"
            answer = f"The {kind} for {asked[0]} mentioned in the text above is {wanted[0]}."
        return Ask(pieces, question, wanted, answer, lambda: sentence(rng))

    return ask


def _variables(rng: random.Random) -> Ask:
    length, num_chains = rng.choice((2, 2, 3)), rng.choice((1, 1, 2))
    letters = string.ascii_uppercase
    names: list[str] = []
    while len(names) < length * num_chains:
        name = "".join(rng.choices(letters, k=3))
        if name not in names:
            names.append(name)
    values = [str(n) for n in rng.sample(range(10_000, 100_000), num_chains)]
    pieces: list[str] = []
    for chain, value in enumerate(values):
        of_chain = names[chain * length :][:length]
        pieces += [f"VAR {of_chain[0]} = {value}."]
        pieces += [f"VAR {later} = VAR {earlier}." for earlier, later in pairwise(of_chain)]
    wanted = names[:length]
    question = (
        f"Which variables have the value {values[0]}, because it was assigned to them directly or through another "
        "variable? List their names."
    )
    answer = f"The variables that have the value {values[0]} are {_listed(wanted)}."
    return Ask(pieces, question, wanted, answer, lambda: sentence(rng))


def _records(rng: random.Random) -> Ask:
    """A question on one entry of a log, whose other entries are of the same kind."""
    ships = rng.sample(SHIPS, len(SHIPS))
    cargoes = rng.sample(CARGO, len(CARGO))

    def entry(ship: str, cargo: str) -> tuple[str, str, str]:
        captain, place, count = rng.choice(NAMES), rng.choice(KEYS), str(rng.randint(12, 980))
        text = (
            f"The {ship} came in from {place} under {captain} and landed {count} crates of {cargo}. "
            f"{sentence(rng)} {sentence(rng)}"
        )
        return text, captain, count

    text, captain, count = entry(ships[0], cargoes[0])
    if rng.random() < 0.5:
        question, wanted = f"Who commanded the {ships[0]}?", captain
        answer = f"The {ships[0]} was commanded by {captain}."
    else:
        question, wanted = f"How many crates of {cargoes[0]} did the {ships[0]} land?", count
        answer = f"The {ships[0]} landed {count} crates of {cargoes[0]}."
    question = f"Answer from the passages, in a few words. {question}"
    others = lambda: entry(rng.choice(ships[1:]), rng.choice(cargoes[1:]))[0]  # noqa: E731 - one expression
    return Ask([text], question, [wanted], answer, others, separator="\n\n")


def _common_words(prompts: PromptBuilder, num_tokens: int, rng: random.Random) -> Practice:
    num_common, num_words = 3, rng.choice((20, 30, 40))
    chosen = rng.sample(MORE_WORDS, num_words)
    common, others = chosen[:num_common], chosen[num_common:]
    question = f"What are the {num_common} most common words in the list?"
    size = prompts.fit(num_tokens, "", question, "end") // 7
    while True:
        num_frequent = max(num_common, round(size * 30 / (30 + len(others))))
        words = [common[at % num_common] for at in range(num_frequent)]
        words += [others[at % len(others)] for at in range(max(0, size - num_frequent))]
        rng.shuffle(words)
        context = " ".join(f"{at}. {word}" for at, word in enumerate(words, 1))
        over = len(prompts.ids(prompts.content(context, question, "end"))) - num_tokens
        if over <= 0:
            break
        size -= -(-over // 7)
    sample = prompts.sample(context, question, "end", common, 64)
    return Practice("common_words", sample, f"The {num_common} most common words in the list are {_listed(common)}.")


_ASKS: dict[str, Callable[[random.Random], Ask]] = {
    "single": _needles(1, 1, 1),
    "multi_key": _needles(4, 1, 1),
    "multi_query": _needles(4, 2, 1),
    "multi_value": _needles(2, 1, 2),
    "variable_tracking": _variables,
    "records": _records,
}

PRACTICE_TASKS = (*_ASKS, "common_words")
"""What `make_practice` can make."""
