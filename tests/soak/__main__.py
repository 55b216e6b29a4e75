"""`make soak`: the default model on this machine's CPU, for MINUTES minutes. Exit status 1 if anything did not hold."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.conftest import CACHE_DIR
from tests.soak.run import Plan, soak
from tests.soak.service import SETTINGS, served
from tests.soak.world import Sizes

SIZES = Sizes(
    users=4,
    mean_pause_s=1.5,
    shared_tokens=520,
    prompt_tokens=(60, 700),
    answer_tokens=(4, 40),
    max_sessions=10,
    max_turns=4,
)


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=int, default=30, help="of load; pauses come on top")
    parser.add_argument("--minute-s", type=float, default=60.0, help="seconds of a minute, for a quick look")
    parser.add_argument("--checked", type=int, default=4, help="answers a minute that the oracle computes again")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    plan = Plan(
        arguments.minutes,
        arguments.minute_s,
        SIZES,
        arguments.checked,
        arguments.seed,
        float(SETTINGS["session_quota_mib"]),
    )

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    settings = {**SETTINGS, "cache_dir": str(CACHE_DIR.absolute())}
    temporary = tempfile.TemporaryDirectory(prefix="swaa-soak-", ignore_cleanup_errors=True)
    with temporary as folder, served(Path(folder), settings) as (watched, text):
        held = asyncio.run(soak(watched, plan, text, say))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
