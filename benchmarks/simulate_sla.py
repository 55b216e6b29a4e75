"""`bench_sla` in virtual time: the same policies on the same requests, with the real planner, scheduler and KV blocks.

    python -m benchmarks.simulate_sla                                        # the default model on a CPU
    python -m benchmarks.simulate_sla --model-shape qwen3-4b --seeds 0 1 2   # Qwen3-4B on an H100

A step takes what a cost profile says (`benchmarks/data`, or --profile), times --bias, which planner and scheduler do
not know of but may learn, times a factor of its own (--noise). Each seed is a run of its own with other requests and
other times; a row of the table has all of them together. See `sla_simulation` for what is left out: figures are
simulated, and no measurement. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import workload
from benchmarks.bench_sla import (
    add_load_options,
    as_data,
    chosen_policies,
    objectives_of,
    print_gains,
    print_head,
    print_row,
    print_setup,
    trace_spec,
    with_capacity,
)
from benchmarks.sla_models import MODELS, PRICED, load_profile, simulated_service
from benchmarks.sla_policies import Policy, Row, Setup, gains, measure_setup, requests_of
from benchmarks.sla_simulation import Machine
from services.gateway.catalog import Catalog
from services.load.report import make_group
from services.load.results import Result
from services.load.trace import TraceRequest


@dataclass(frozen=True, slots=True)
class Simulation:
    """One model on one machine, and the requests of each load and seed."""

    model_name: str
    catalog: Catalog
    setup: Setup
    bias: float
    noise: float
    traces: dict[tuple[float, int], list[TraceRequest]]

    def results(self, policy: Policy, load: float, seed: int) -> list[Result]:
        """What becomes of the requests of one load and seed."""
        machine = Machine(self.setup.profile, self.bias, self.noise, seed)
        service = simulated_service(self.model_name, self.catalog, policy, machine)
        return service.run(policy.asked(self.traces[load, seed]))


def run_policy(
    simulation: Simulation, policy: Policy, loads: Sequence[float], seeds: Sequence[int]
) -> tuple[list[Row], dict[int, list[Row]]]:
    """A row for each load over all seeds, which is printed, and the same of each seed."""
    rows: list[Row] = []
    by_seed: dict[int, list[Row]] = {seed: [] for seed in seeds}
    for load in loads:
        every: list[Result] = []
        duration_s = 0.0
        for seed in seeds:
            results = simulation.results(policy, load, seed)
            took_s = max(result.sent_ms + result.total_ms for result in results) / 1e3
            by_seed[seed].append(Row(policy, load, make_group(results, took_s)))
            every += results
            duration_s += took_s
        rows.append(Row(policy, load, make_group(every, duration_s)))
        print_row(rows[-1])
    return rows, by_seed


def simulate(args: argparse.Namespace) -> dict[str, Any]:
    """Run everything; the figures as data."""
    model = MODELS[args.model_shape]
    profile = load_profile(args.profile) if args.profile else model.profile
    catalog = model.catalog
    chosen = chosen_policies(args)
    specs = {seed: trace_spec(args, seed) for seed in args.seeds}
    spec = specs[args.seeds[0]]
    setup = with_capacity(args, catalog, measure_setup(profile, catalog, spec), spec)
    window_s = setup.window_s(args.minutes * 60, args.loads, chosen)
    traces = {
        (load, seed): requests_of(
            replace(spec, rate_per_s=load * setup.capacity_per_s, duration_s=window_s), objectives_of(args), setup
        )
        for load in args.loads
        for seed, spec in specs.items()
    }
    simulation = Simulation(args.model_shape, catalog, setup, args.bias, args.noise, traces)
    print(f"simulated, {len(args.seeds)} seeds; prices: {profile.hardware}")
    print_setup(setup, window_s)
    print_head()
    rows: list[Row] = []
    by_seed: dict[int, list[Row]] = {seed: [] for seed in args.seeds}
    for policy in chosen:
        its_rows, its_by_seed = run_policy(simulation, policy, args.loads, args.seeds)
        rows += its_rows
        for seed, more in its_by_seed.items():
            by_seed[seed] += more
    by_load = gains(rows)
    each = {seed: gains(seed_rows) for seed, seed_rows in by_seed.items()}
    print("\nsimulated, no measurement:")
    print_gains(by_load)
    for load in by_load:
        points = [each[seed][load]["gain_points"] for seed in args.seeds if load in each[seed]]
        print(f"at {load:.1f} x, seed by seed: {', '.join(f'{point:+.1f}' for point in points)} points")
    return {
        "model": args.model_shape,
        "bias": args.bias,
        "noise": args.noise,
        "seeds": args.seeds,
        "window_s": window_s,
        **as_data(args, setup, rows, by_load),
        "gains_by_seed": each,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-shape", choices=PRICED, default="default")
    parser.add_argument("--profile", type=Path, help="prices, as `swaa calibrate` keeps them (default: by shape)")
    add_load_options(parser)
    parser.set_defaults(minutes=180.0)  # of virtual time: an overload takes a while to show
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--noise", type=float, default=0.0, help="deviation of the logarithm of a step's time")
    parser.add_argument("--bias", type=float, default=1.0, help="times what the profile says a step takes")
    return parser.parse_args()


def main() -> None:
    """Simulate, print, and end with one line of JSON."""
    summary = {
        "benchmark": "sla",
        "simulated": True,
        "versions": workload.versions(),
        "date": workload.today(),
        "command": workload.command("benchmarks.simulate_sla"),
        **simulate(_arguments()),
    }
    print("\n" + json.dumps(summary))


if __name__ == "__main__":
    main()
