"""Child processes that never outlive us, however we end."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

# Runs the command and ends it when standard input ends, that is when our process is gone, in whatever way. (The
# kernel's PR_SET_PDEATHSIG would end it with the *thread* that started it, and needs code between fork and exec.) The
# shell is the command's parent until the end, so the process id that it signals is never somebody else's.
_GUARD = """
exec 3<&0
"$0" "$@" </dev/null 3<&- & child=$!
{ read -r _; kill -TERM "$child"; } <&3 2>/dev/null & watcher=$!
exec 3<&-
wait "$child"; code=$?
kill -KILL "$watcher" 2>/dev/null
exit "$code"
"""


class GuardedProcess:
    """A command that gets SIGTERM when this process is gone, or when `stop` is called."""

    def __init__(
        self,
        command: Sequence[str],
        log: IO[bytes] | None = None,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it in `folder`, its output to `log` or nowhere. Raises OSError if there is no shell."""
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL if log is None else log,
            stderr=subprocess.DEVNULL if log is None else log,
            cwd=folder,
            env=environment,
            start_new_session=True,  # Ctrl-C is for us; we stop our children then, in order
        )

    @property
    def pid(self) -> int:
        """Of the guard, whose process group has the command in it."""
        return self._guard.pid

    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._guard.poll()

    def stop(self, timeout_s: float) -> int:
        """SIGTERM, and SIGKILL after `timeout_s`; the exit code."""
        assert self._guard.stdin is not None  # noqa: S101 - opened as a pipe
        self._guard.stdin.close()
        try:
            return self._guard.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL, as a crash would be; the exit code. Does nothing more if it has ended."""
        if self._guard.poll() is None:
            os.killpg(self._guard.pid, signal.SIGKILL)
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        return self._guard.wait()
