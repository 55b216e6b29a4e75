"""Common words extraction, after RULER: a numbered list of words; which of them appear most often?"""

from __future__ import annotations

import random
from dataclasses import dataclass

from services.quality.tasks.sample import Order, PromptBuilder, Sample

WORDS = (
    "anchor", "apple", "arrow", "autumn", "badge", "basket", "beacon", "bell", "blanket", "bottle", "branch",
    "bridge", "bucket", "button", "cabin", "camera", "candle", "canvas", "carpet", "castle", "cherry", "circle",
    "clock", "cloud", "coffee", "copper", "corner", "cotton", "cradle", "crystal", "curtain", "desert",
    "diamond", "dinner", "dragon", "drawer", "eagle", "engine", "fabric", "feather", "fiddle", "finger",
    "forest", "fountain", "garden", "garlic", "glove", "granite", "hammer", "harbor", "helmet", "honey",
    "island", "ivory", "jungle", "kettle", "kitchen", "ladder", "lantern", "leather", "lemon", "letter",
    "lizard", "magnet", "marble", "market", "meadow", "mirror", "monkey", "morning", "mountain", "museum",
    "needle", "nickel", "ocean", "olive", "onion", "orange", "orchard", "paper", "parcel", "pencil", "pepper",
    "pillow", "pirate", "planet", "pocket", "potato", "puzzle", "rabbit", "ribbon", "river", "rocket", "saddle",
    "salmon", "school", "shadow", "silver", "singer", "spider", "spring", "stable", "station", "summer",
    "sunset", "table", "temple", "thunder", "ticket", "tiger", "timber", "tomato", "tower", "tractor",
    "trumpet", "tunnel", "turtle", "velvet", "village", "violin", "wagon", "walnut", "weather", "whistle",
    "willow", "window", "winter", "wizard",
)  # fmt: skip
MOST_WORD_TOKENS = 10
"""No numbered word takes more; what the others take is estimated from a list of so few, then counted."""

EXAMPLE_WORDS = ("uncle", "yellow", "kingdom", "guitar", "ostrich", "jacket")


@dataclass(frozen=True, slots=True)
class CommonWords:
    """A list in which `num_common` words appear `common_weight` times as often as each of the others.

    RULER: 10 common words, 30 times each beside 3 of each other word, from thousands of words. Scaled for a model of
    135M parameters: fewer of both, so that words recur at every length.

    Attributes:
        num_words: different words in the list.
        common_weight: occurrences of a common word per occurrence of another.
    """

    name: str = "common_words"
    num_common: int = 1
    num_words: int = 10
    common_weight: int = 10
    order: Order = "end"

    def sample(self, prompts: PromptBuilder, num_tokens: int, rng: random.Random) -> Sample:
        """See Task.sample."""
        chosen = rng.sample(WORDS, self.num_words)
        common, others = chosen[: self.num_common], chosen[self.num_common :]
        question = self._question()
        example = f"Example list: {self._example(rng)}\n\nList:\n"
        draw_seed = rng.random()
        budget = prompts.fit(num_tokens, example, question, self.order)
        trial = prompts.count([numbered(self._words(common, others, budget // MOST_WORD_TOKENS, random.Random(0)))])[0]
        size = max(1, budget // MOST_WORD_TOKENS) * budget // max(1, trial)
        while True:
            context = example + numbered(self._words(common, others, size, random.Random(draw_seed)))
            over = len(prompts.ids(prompts.content(context, question, self.order))) - num_tokens
            if over <= 0:
                break
            size -= max(1, over // MOST_WORD_TOKENS)
        return prompts.sample(context, question, self.order, common, 16 + 8 * self.num_common)

    def _example(self, rng: random.Random) -> str:
        """A short list with its answer, as RULER gives one: it shows what is asked for and how to say it."""
        words = rng.sample(EXAMPLE_WORDS, len(EXAMPLE_WORDS))
        common = words[: self.num_common]
        listed = common * 3 + words[self.num_common :]
        rng.shuffle(listed)
        return f"{numbered(listed)}\n{self._question()}\n{', '.join(common)}"

    def _question(self) -> str:
        if self.num_common == 1:
            return "What is the most common word in the list?"
        return f"What are the {self.num_common} most common words in the list?"

    def _words(self, common: list[str], others: list[str], size: int, rng: random.Random) -> list[str]:
        weight = self.num_common * self.common_weight
        num_common = min(size, max(self.num_common, round(size * weight / (weight + len(others)))))
        words = [common[at % len(common)] for at in range(num_common)]
        words += [others[at % len(others)] for at in range(size - num_common)]
        rng.shuffle(words)
        return words


def numbered(words: list[str]) -> str:
    """A numbered list on one line."""
    return " ".join(f"{at}. {word}" for at, word in enumerate(words, 1))
