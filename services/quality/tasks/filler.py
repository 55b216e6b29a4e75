"""Text around what is asked for: sentences drawn from lists, no two prompts alike, and how needles are laid into it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from services.quality.tasks.sample import PromptBuilder

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

MAX_DEPTH = 0.7
"""What is asked for lies in the first 70 % of the text: in the last window every recipe would find it."""

LEAST_PIECE_TOKENS = 8


def sentence(rng: random.Random) -> str:
    """One sentence of filler."""
    return f"{rng.choice(WHO)} {rng.choice(DID)} {rng.choice(WHERE)} {rng.choice(WHEN)}, {rng.choice(THEN)}."


def fill(
    prompts: PromptBuilder,
    budget_tokens: int,
    piece: Callable[[], str],
    *,
    separator: str = " ",
    least_piece_tokens: int = LEAST_PIECE_TOKENS,
) -> list[str]:
    """Pieces, each after a separator, of at most `budget_tokens` tokens together, and less than one piece fewer.

    Args:
        least_piece_tokens: no piece is shorter; how many are drawn depends on it, so it belongs to the sample.
    """
    pieces = [piece() for _ in range(budget_tokens // least_piece_tokens + 1)]
    kept = []
    for text, count in zip(pieces, prompts.count([separator + text for text in pieces]), strict=True):
        budget_tokens -= count
        if budget_tokens < 0:
            break
        kept.append(text)
    return kept


def bury(needles: Sequence[str], filler: Sequence[str], rng: random.Random) -> list[str]:
    """Filler with the needles in it, in their order, at random places within the first `MAX_DEPTH` of it."""
    depths = sorted(int(rng.random() * MAX_DEPTH * (len(filler) + 1)) for _ in needles)
    pieces = list(filler)
    for needle, depth in reversed(list(zip(needles, depths, strict=True))):
        pieces.insert(depth, needle)
    return pieces
