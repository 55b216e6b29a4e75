"""Sweeping: who has a file open in the folder goes, others stay."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from services.sweeper import processes_in, sweep

Sleeper = subprocess.Popen[bytes]


@pytest.fixture
def sleepers(tmp_path: Path) -> Iterator[tuple[Sleeper, Sleeper]]:
    """Two processes, one that writes to a file in folder `in`, and one to a file beside it."""
    with ExitStack() as stack:
        processes = []
        for name in ("in/sub/log", "in-between/log"):
            path = tmp_path / name
            path.parent.mkdir(parents=True)
            with path.open("wb") as log:
                process = stack.enter_context(subprocess.Popen(("/bin/sleep", "60"), stdout=log))
            stack.callback(process.kill)
            processes.append(process)
        yield processes[0], processes[1]


def test_only_those_with_a_file_in_the_folder_go_and_the_folder_with_them(
    tmp_path: Path, sleepers: tuple[Sleeper, Sleeper]
) -> None:
    inside, outside = sleepers
    with (tmp_path / "in" / "ours").open("wb"):
        assert set(processes_in(tmp_path / "in")) == {inside.pid, os.getpid()}
        sweep(tmp_path / "in", spare=os.getpid())
    assert inside.wait(5) == -9
    assert outside.poll() is None
    assert not (tmp_path / "in").exists()
    assert (tmp_path / "in-between").exists()
