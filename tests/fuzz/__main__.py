"""`make fuzz`: all targets against a service of its own; findings on stderr, and one line of JSON at the end.

python -m tests.fuzz --inputs 100000 --seed 1
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.workload import make_tiny_model
from services.config import load_config
from services.replica.parts import model_folder
from tests.conftest import CACHE_DIR
from tests.walk.harness import Service

from . import guided, pure
from .runner import run_all
from .target import Outcome
from .wire import Wire, described

SETTINGS = {"dtype": "float32", "kv_memory_mib": "16", "session_ttl_s": "60", "prefix_ttl_s": "30", "max_waiting": "8"}
SHARES = {"wire": 0.2, "described": 0.03, "guided": 0.6}
"""Of the inputs; `pure` has the rest. What is not installed leaves its share to that."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf, help="fewer inputs rather than longer")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="swaa-fuzz-", ignore_cleanup_errors=True) as name:
        report = fuzz(Path(name), options.inputs, options.seed, time.monotonic() + options.minutes * 60)
    print(json.dumps(report))
    return 0 if not any(report[count] for count in ("crashes", "internal", "kv_blocks_left", "redis_keys_left")) else 1


def fuzz(folder: Path, num_inputs: int, seed: int, until_s: float) -> dict[str, Any]:
    """Run everything; what was found, in numbers."""
    started_s = time.monotonic()
    model = make_tiny_model(folder, model_folder(load_config(cache_dir=CACHE_DIR)))
    outcomes: list[Outcome] = []
    settings = {"model": str(model), "cache_dir": str(folder), **SETTINGS}
    with ThreadPoolExecutor(1) as beside, Service(folder, **settings) as service:
        wire = Wire(service)
        left_s = until_s - time.monotonic()
        guiding = beside.submit(_guided, int(num_inputs * SHARES["guided"]), seed)
        outcomes += run_all(wire.targets(), int(num_inputs * SHARES["wire"]), seed, time.monotonic() + left_s / 2)
        if importlib.util.find_spec("schemathesis") is not None:
            operations = list(described(service))
            outcomes += run_all(operations, int(num_inputs * SHARES["described"]), seed, time.monotonic() + left_s / 4)
        outcomes += guiding.result()
        inputs_left = num_inputs - sum(outcome.num_inputs for outcome in outcomes)
        outcomes += run_all(pure.targets(), inputs_left, seed, until_s)
        left = wire.leftovers()
        internal = wire.bugs_in_log()
        wire.close()
        log = service.log
        exit_code = service.stop()
    for outcome in outcomes:
        for place, given in outcome.failures.items():
            print(f"{outcome.name}: {place}\n    {given}", file=sys.stderr)
    if internal:
        print(log[log.find("unexpected error") :][:6000], file=sys.stderr)
    return {
        "benchmark": "fuzz",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "inputs": sum(outcome.num_inputs for outcome in outcomes),
        "seconds": round(time.monotonic() - started_s),
        "targets": {outcome.name: outcome.num_inputs for outcome in outcomes},
        "crashes": sum(len(outcome.failures) for outcome in outcomes) + (exit_code != 0),
        "internal": internal,
        "kv_blocks_left": left["kv_blocks"],
        "redis_keys_left": left["redis_keys"],
    }


def _guided(num_inputs: int, seed: int) -> list[Outcome]:
    return guided.run_all(num_inputs, seed) if importlib.util.find_spec("atheris") is not None else []


if __name__ == "__main__":
    sys.exit(main())
