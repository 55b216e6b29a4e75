"""A service in a process of its own, for benchmarks: started, waited for, drained and stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

START_TIMEOUT_S = 1200.0
"""The first start on a machine measures its costs."""

STOP_TIMEOUT_S = 60.0

SWAA = (sys.executable, "-m", "services.cli")


@contextlib.contextmanager
def served(folder: Path, settings: Mapping[str, str]) -> Iterator[str]:
    """`swaa serve` with these settings, by the names of `ServeConfig`; yields its host:port. Its log is in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    ready, log_path = folder / "address", folder / "serve.log"
    ready.unlink(missing_ok=True)
    command = [*SWAA, "serve", "--listen", "127.0.0.1:0", "--ready-file", str(ready)]
    with log_path.open("ab") as log:
        process = subprocess.Popen(command, env=_environment(settings), stdout=log, stderr=log)
    try:
        until_s = time.monotonic() + START_TIMEOUT_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > until_s:
                raise SystemExit(f"the service did not start:\n{log_path.read_text(errors='replace')[-3000:]}")
            time.sleep(0.1)
        yield ready.read_text(encoding="utf-8").strip()
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def calibrate(settings: Mapping[str, str]) -> None:
    """`swaa calibrate` with these settings; services with the same ones use the profile."""
    subprocess.run([*SWAA, "calibrate"], env=_environment(settings), check=True)


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's, but of the service's settings these alone."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SWAA_")}
    return environment | {f"SWAA_{name.upper()}": value for name, value in settings.items()}
