"""Quality between measured lengths, and what a catalogue says of names it does not know."""

from __future__ import annotations

import math

import pytest

from services.gateway.catalog import QualityTable
from swaa_runtime.errors import InvalidRequest

from .builders import make_catalog

TABLE = QualityTable("made up", (1000, 2000, 8000), {"full": (1.0, 0.8, 0.0), "a": (0.9, 0.5, 0.1), "b": (1, 0.9, 0)})


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    [
        (1, 0.9),
        (1000, 0.9),
        (round(1000 * math.sqrt(2)), 0.7),  # half way on a scale of logarithms
        (2000, 0.5),
        (4000, 0.3),
        (8000, 0.1),
        (1_000_000, 0.1),
    ],
)
def test_recall_is_linear_in_log_length_and_flat_beyond_the_ends(num_tokens: int, expected: float) -> None:
    assert TABLE.recall_at("a", num_tokens) == pytest.approx(expected, abs=1e-3)


def test_quality_is_relative_to_full_attention_and_at_most_1() -> None:
    assert TABLE.quality_at("a", 2000) == pytest.approx(0.5 / 0.8)
    assert TABLE.quality_at("b", 2000) == 1.0  # measured above full attention: chance
    assert TABLE.quality_at("full", 3000) == 1.0


def test_where_full_attention_finds_nothing_every_recipe_is_as_good() -> None:
    assert TABLE.quality_at("a", 8000) == 1.0


def test_an_unknown_recipe_is_refused_by_the_name_of_its_header() -> None:
    with pytest.raises(InvalidRequest, match=r"x-swaa-recipe is 'best': unknown recipe; known are full, tail, sliding"):
        make_catalog().recipe("x-swaa-recipe", "best")
