"""A rank that does not answer any more, and does not end: a process that is stopped, or for ever at something else."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from swaa_runtime.errors import EngineFailed
from swaa_runtime.tensor_parallel.orders import Rank
from swaa_runtime.tensor_parallel.ranks import Ranks
from tests.swaa_runtime.builders import Rig, build_request
from tests.swaa_runtime.tensor_parallel.builders import load_tiny, shared_rig, start_ranks

HANG_S = 2.0
TOLD = "a rank of 2 does not answer: they were not done within 2 s"


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    """Of one test's own."""
    ranks = start_ranks(partial(load_tiny, "llama"), HANG_S)
    yield ranks
    ranks.close()


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def assert_fails(rig: Rig, ranks: Ranks) -> None:
    """It is told within seconds, the processes and their folder are gone, and nothing waits for them."""
    [worker] = ranks._processes
    assert worker.pid is not None
    began_s = time.monotonic()
    with pytest.raises(EngineFailed, match=TOLD):
        rig.run()
    assert HANG_S <= time.monotonic() - began_s < HANG_S + 10
    assert is_gone(worker.pid)
    for ask in (rig.runner.check, rig.engine.step):
        with pytest.raises(EngineFailed, match=TOLD):
            ask()
    began_s = time.monotonic()
    ranks.close()
    assert time.monotonic() - began_s < 5
    assert not ranks._folder.exists()


def test_a_rank_that_is_stopped_is_missed_when_it_has_to_do_its_part(ranks: Ranks) -> None:
    """Not before: it may go on in time, as all do on a machine that was paused."""
    rig = shared_rig(ranks)
    [worker] = ranks._processes
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    time.sleep(1.5 * HANG_S)
    ranks.check()
    os.kill(worker.pid, signal.SIGCONT)
    rig.add(build_request("r", 400))
    rig.step()
    os.kill(worker.pid, signal.SIGSTOP)
    assert_fails(rig, ranks)


@dataclass(frozen=True, slots=True)
class Hang:
    """An order that is never done."""

    def obey(self, rank: Rank) -> None:
        time.sleep(3600)


def test_a_rank_that_runs_but_does_not_come_to_a_sum_is_the_same(ranks: Ranks) -> None:
    rig = shared_rig(ranks)
    ranks.order(Hang())
    rig.add(build_request("r", 400))
    assert_fails(rig, ranks)
