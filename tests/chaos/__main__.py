"""`make chaos`: a cluster on this machine, fault after fault. Exit status 1 if anything did not hold."""

from __future__ import annotations

import argparse
import asyncio
import sys

from services.config import load_config
from services.replica.parts import model_folder
from tests.chaos import faults
from tests.chaos.cluster import suffering
from tests.chaos.run import Plan, chaos, name_of
from tests.conftest import CACHE_DIR


def main() -> int:
    """The exit status."""
    names = {name_of(fault): fault for fault in (*faults.ANYWHERE, faults.gateway_cut_off)}
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="times that each fault comes")
    parser.add_argument("--fault", action="append", choices=list(names), help="only this one; may be given again")
    parser.add_argument("--checked", type=int, default=12, help="answers that the oracle computes again after each")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    with suffering(model_folder(load_config(cache_dir=CACHE_DIR)), arguments.seed) as (watched, text):
        chosen = [names[name] for name in arguments.fault or names]
        if watched.victims.namespace is None and faults.gateway_cut_off in chosen:
            say("no network namespaces here (they need root and iproute2): no gateway is cut off")
            chosen.remove(faults.gateway_cut_off)
        plan = Plan(chosen * arguments.rounds, 3.0, 5.0, arguments.checked, arguments.seed)
        held = asyncio.run(chaos(watched, plan, text, say))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
