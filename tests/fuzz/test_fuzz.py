"""The short version of `make fuzz`: the same inputs each time, without a service; `tests/walk/test_fuzz.py` has one."""

from __future__ import annotations

import pytest

from . import guided
from .pure import examples, targets
from .runner import run
from .target import Target

INPUTS = 60


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.name)
def test_everything_that_takes_bytes_or_mappings_takes_or_refuses_them(target: Target) -> None:
    outcome = run(target, INPUTS, random_seed=1)
    assert not outcome.failures
    assert outcome.num_inputs > INPUTS // 2


def test_a_failure_is_found_and_told_with_its_input_and_the_run_goes_on() -> None:
    def refuse_large(value: object) -> None:
        if value:
            raise ValueError("not empty")

    recipes = next(target for target in targets() if target.name == "recipe")
    outcome = run(Target("broken", recipes.inputs, refuse_large), INPUTS, random_seed=1)
    assert outcome.num_inputs > INPUTS // 2
    [(place, given)] = outcome.failures.items()
    assert place.startswith("ValueError: not empty at test_fuzz.py:")
    assert given.startswith("{")


def test_what_guides_by_coverage_starts_from_good_examples() -> None:
    assert examples().keys() == set(guided.NAMES)
