"""A turn that is not saved is a fault, unless what happened to the store explains it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.chaos.run import TOLERATED_UNSAVED
from tests.soak.world import Sizes, Target, World

NONE: Any = None
QUOTA = "session:a needs 9 bytes beside the 5 stored; the quota is 10 bytes"
AWAY = "session store: Error 111 connecting to 127.0.0.1:6379. Connection refused."
MISSING = "session:a: segment 64d3 is neither stored nor given"


def make_world() -> World:
    return World(Target("", ""), NONE, NONE, NONE, (), Sizes(1, 1.0, 1, (1, 1), (1, 1), 1, 1), random.Random(0))


@pytest.mark.parametrize("error", [AWAY, MISSING, ""])
def test_a_turn_that_is_not_saved_for_no_good_reason_is_a_fault(error: str) -> None:
    with pytest.raises(AssertionError, match="not saved"):
        make_world().unsaved(error)


def test_a_full_quota_explains_it_and_under_faults_a_store_that_is_away() -> None:
    world = make_world()
    assert world.unsaved(QUOTA) == "unsaved (quota)"
    world.tolerated_unsaved = {**world.tolerated_unsaved, **TOLERATED_UNSAVED}
    assert world.unsaved(AWAY) == "unsaved (store)"
    with pytest.raises(AssertionError, match="neither stored nor given"):
        world.unsaved(MISSING)
