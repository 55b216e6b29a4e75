"""Children that do not outlive their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from services.guarded_process import GuardedProcess

PARENT = """
import sys, time
from pathlib import Path
from services.guarded_process import GuardedProcess
with open(sys.argv[1], "wb") as log:
    GuardedProcess(["/bin/sh", "-c", "trap 'echo ended; exit 0' TERM; echo started; while :; do sleep 0.05; done"], log)
time.sleep(60)
"""


def until_it_says(path: Path, text: str) -> None:
    deadline_s = time.monotonic() + 120
    while not path.exists() or text not in path.read_text(encoding="utf-8"):
        assert time.monotonic() < deadline_s, f"it never said {text!r}"
        time.sleep(0.02)


def test_a_child_is_told_to_end_when_its_parent_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen((sys.executable, "-c", PARENT, str(log)), env=environment) as parent:
        until_it_says(log, "started")
        parent.kill()
    until_it_says(log, "ended")


def test_stop_asks_first_and_kills_what_does_not_listen(tmp_path: Path) -> None:
    for trap, code in (("exit 7", 7), ("", -signal.SIGKILL)):
        path = tmp_path / f"log{code}"
        with path.open("wb") as log:
            script = f"trap '{trap}' TERM; echo started; while :; do sleep 0.05; done"
            process = GuardedProcess(["/bin/sh", "-c", script], log)
        until_it_says(path, "started")
        assert process.exit_code() is None
        assert process.stop(timeout_s=1.0) == code
        assert process.exit_code() == code
