"""Ends the processes that have files open in a folder, and removes it: what Ray leaves behind when we are killed.

`python -m services.sweeper FOLDER PID` waits for SIGTERM, which a `GuardedProcess` gets when its parent is gone; then
it sweeps, but spares process PID: the parent, if that is there still.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

GRACE_S = 1.0
"""For those that end by themselves."""


def sweep(folder: Path, spare: int) -> None:
    """Kill until there is none but `spare`; processes of other users are not seen."""
    while pids := set(processes_in(folder)) - {spare}:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def processes_in(folder: Path) -> list[int]:
    """Processes that have a file in the folder open. All of Ray's have: their logs. Names and titles tell less."""
    prefix, found = f"{folder.resolve()}{os.sep}", []
    for files in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            if any(_target(file).startswith(prefix) for file in files.iterdir()):
                found.append(int(files.parent.name))
    return found


def _target(link: Path) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(link)
    return ""


def main() -> None:
    """Wait for SIGTERM, then for a moment, then sweep."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.sigwait({signal.SIGTERM})
    time.sleep(GRACE_S)
    sweep(Path(sys.argv[1]), spare=int(sys.argv[2]))


if __name__ == "__main__":
    main()
