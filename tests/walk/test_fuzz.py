"""The short version of `make fuzz` over the wires: nothing is answered with a bug, and nothing is kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.runner import run_all
from tests.fuzz.wire import Wire

from .harness import Service

pytestmark = [pytest.mark.model, pytest.mark.redis]

INPUTS = 150


@pytest.fixture
def wire(tiny: Service) -> Iterator[Wire]:
    wire = Wire(tiny)
    yield wire
    wire.close()


def test_no_input_gets_an_answer_that_is_a_bug_and_all_memory_is_given_back(wire: Wire) -> None:
    before = wire.bugs_in_log()
    outcomes = run_all(wire.targets(), INPUTS, random_seed=1)
    assert not {outcome.name: outcome.failures for outcome in outcomes if outcome.failures}
    assert sum(outcome.num_inputs for outcome in outcomes) >= INPUTS
    assert wire.bugs_in_log() == before
    assert wire.used_blocks_soon() == 0
