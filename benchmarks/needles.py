"""Needle-in-a-haystack samples: varied filler sentences, one fact at a random depth, one question about it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

WHO = (
    "The baker", "A retired teacher", "My neighbour", "The new librarian", "An old sailor", "The youngest student",
    "A travelling salesman", "The train driver", "Her cousin", "The village doctor", "A quiet gardener", "The painter",
    "The head cook", "A visiting engineer", "The postman", "One of the farmers", "The museum guard", "A tired nurse",
    "The choir leader", "His grandmother", "The clock maker", "A young lawyer", "The ferry captain", "The beekeeper",
)  # fmt: skip
DID = (
    "repaired a broken chair", "wrote a long letter", "planted two rows of beans", "watched the rain", "sold a coat",
    "counted the empty boxes", "told an odd story", "painted the front door", "lost a leather glove", "read the news",
    "cooked a pot of lentils", "polished the brass lamps", "sketched a plan of the bridge", "borrowed a ladder",
    "learned a difficult song", "cleaned the windows", "waited for the late bus", "fed the geese", "mended a torn net",
    "measured the old table", "carried water uphill", "packed a small suitcase", "called an old friend", "baked a cake",
)  # fmt: skip
WHERE = (
    "near the market", "behind the school", "in the attic", "by the river", "under the chestnut tree", "at the station",
    "beside the chapel", "in the back garden", "on the north side of the square", "across the mill", "in the kitchen",
    "along the canal", "at the edge of the forest", "in a rented room", "on the upper deck", "outside the town hall",
)  # fmt: skip
WHEN = (
    "before breakfast", "on a cold Monday", "after the concert", "during the long strike", "late in the evening",
    "while the bells rang", "in the last week of May", "just after sunrise", "on the way home", "between two meetings",
    "when the lights went out", "despite the heavy wind", "for the third time", "without saying a word",
)  # fmt: skip
THEN = (
    "and nobody asked why", "which took most of the day", "and was pleased with the result", "but forgot to mention it",
    "and later regretted it", "because there was nothing else to do", "and the others laughed", "as people often do",
    "and it cost almost nothing", "though the weather was poor", "and then went to sleep", "to everyone's surprise",
)  # fmt: skip
TOPICS = (
    "Lisbon", "Oslo", "Nairobi", "Kyoto", "Toronto", "Lima", "Prague", "Hanoi", "Dublin", "Cairo", "Warsaw", "Seattle",
    "Athens", "Helsinki", "Bogota", "Vienna", "Jakarta", "Madrid", "Sydney", "Boston",
)  # fmt: skip

MAX_DEPTH = 0.7
"""Needles lie in the first 70 %: one in the last window would be found by every recipe."""


@dataclass(frozen=True, slots=True)
class NeedleSample:
    """One prompt and the text that a right answer contains."""

    token_ids: tuple[int, ...]
    answer: str


def make_sample(tokenizer: Any, num_tokens: int, rng: random.Random) -> NeedleSample:
    """A chat prompt of at most `num_tokens` tokens, and less than a sentence short of it."""
    topic, answer = rng.choice(TOPICS), str(rng.randint(1000, 9999))
    needle = f"The special magic number for {topic} is {answer}."
    question = f"What is the special magic number for {topic} mentioned in the text above?"
    sentences: list[str] = []
    budget = num_tokens - _count(tokenizer, _chat(tokenizer, f" {needle}\n\n{question}"))
    while (budget := budget - _count(tokenizer, " " + (sentence := _sentence(rng)))) >= 0:
        sentences.append(sentence)
    sentences.insert(int(rng.random() * MAX_DEPTH * len(sentences)), needle)
    prompt = _chat(tokenizer, " ".join(sentences) + f"\n\n{question}")
    return NeedleSample(tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"]), answer)


def _sentence(rng: random.Random) -> str:
    return f"{rng.choice(WHO)} {rng.choice(DID)} {rng.choice(WHERE)} {rng.choice(WHEN)}, {rng.choice(THEN)}."


def _chat(tokenizer: Any, content: str) -> str:
    message = [{"role": "user", "content": content}]
    text: str = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    return text


def _count(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])
