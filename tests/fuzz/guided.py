"""Targets that take bytes, guided by coverage: atheris runs each in a process of its own, from good examples on.

python -m tests.fuzz.guided archive corpus -atheris_runs=10000 -seed=1
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .target import Outcome

NAMES = ("archive", "manifest", "prefix", "json-body", "message")
INSTRUMENTED = ["services.sessions", "services.gateway.http", "services.gateway.upload", "swaa_runtime.recipe"]
RUN_TIMEOUT_S = 1800.0


def run_all(num_inputs: int, seed: int) -> list[Outcome]:
    """Each target in turn. A process that fails is a failure, told by the end of what it wrote."""
    return [_run(name, num_inputs // len(NAMES), seed) for name in NAMES]


def _run(name: str, num_inputs: int, seed: int) -> Outcome:
    outcome, started_s = Outcome(f"guided-{name}"), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="swaa-fuzz-") as folder:
        options = (f"-atheris_runs={num_inputs}", f"-seed={seed}", "-max_len=65536", f"-artifact_prefix={folder}/")
        command = (sys.executable, "-m", "tests.fuzz.guided", name, folder, *options)
        told: dict[str, Any] = {"capture_output": True, "text": True, "errors": "replace"}
        ran = subprocess.run(command, timeout=RUN_TIMEOUT_S, check=False, **told)
    done = re.findall(r"^#(\d+)\s", ran.stderr, re.MULTILINE) or re.findall(r"Done (\d+) in", ran.stderr)
    outcome.num_inputs = num_inputs if ran.returncode == 0 else int(done[-1]) if done else 0
    if ran.returncode:
        outcome.failures[f"exit status {ran.returncode}"] = (ran.stdout + ran.stderr)[-2000:]
    outcome.took_s = time.monotonic() - started_s
    return outcome


def main(arguments: Sequence[str]) -> None:
    """One target, in this process, until atheris ends it."""
    import atheris

    name, corpus, *options = arguments
    with atheris.instrument_imports(include=INSTRUMENTED, enable_loader_override=False):
        from services.sessions.codec import frame

        from . import pure
    runs: dict[str, Callable[[bytes], None]] = {
        "archive": lambda data: pure.archive((data, 4096)),
        "manifest": lambda data: pure.manifest(frame(data)),
        "prefix": lambda data: pure.prefix(frame(data)),
        "json-body": pure.json_body,
        "message": pure.message,
    }
    (Path(corpus) / "good").write_bytes(pure.examples()[name])
    atheris.Setup([sys.argv[0], corpus, *options], runs[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
