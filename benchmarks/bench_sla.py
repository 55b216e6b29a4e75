"""SLAs met and quality kept under load: fixed recipes, first come first served, and the planner, on the same requests.

    python -m benchmarks.bench_sla                                        # default model, CPU, about 20 minutes
    python -m benchmarks.bench_sla --device cuda --model-shape qwen3-4b   # random weights of that shape

Capacity is the rate of requests that keeps one replica exactly busy under the reference: the recipe of the best
quality, and of several the one of least work. So a load above 1 is more than can be served without giving up quality.
It is found in virtual time: what the service's own scheduler takes for many that wait, by the measured cost profile.
At every load the same requests come at the same (Poisson) times to every policy:

    fixed: NAME     one recipe for all, our scheduler            x-swaa-recipe: NAME
    fcfs: full      full attention, first come first served      the same, SWAA_SCHEDULING_POLICY=fcfs
    fcfs: planner   the planner, first come first served         SWAA_SCHEDULING_POLICY=fcfs
    planner         the planner and our scheduler
    planner strict  the same, refusing what it would miss        x-swaa-strict: true; only if named in --policies

An SLA is met if time to first token, time per token and least quality are; a refusal or an error is a miss. Objectives
of time to first token are multiples of the mean work under the reference, so that a run of minutes tells: see
--objectives; --tpot and --min-quality are for the others. Quality is the catalogue's table. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import grpc
import torch

from benchmarks import workload
from benchmarks.served import served
from benchmarks.shapes import SHAPES, add_service_options, model_folder, service_settings
from benchmarks.sla_models import find_profile, saturated
from benchmarks.sla_policies import (
    DEFAULT_SCHEDULING,
    SAMPLE_S,
    Objectives,
    Policy,
    Row,
    Setup,
    all_policies,
    gains,
    measure_setup,
    requests_of,
)
from services.gateway.catalog import Catalog
from services.gateway.catalog_file import ServedModel, load_catalog
from services.gateway.limits import GRPC_OPTIONS
from services.load.prompts import TokenPrompts
from services.load.report import make_report
from services.load.runner import LoadRunner
from services.load.trace import TraceRequest, TraceSpec, parse_names, parse_numbers
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.pb.swaa.v1 import long_context_pb2_grpc as pb_grpc

LOADS = (0.5, 0.8, 1.2, 1.6, 2.0)
TIMEOUT_S = 3600.0
WARM_UP = 3


def set_up(address: str, args: argparse.Namespace, spec: TraceSpec) -> Setup:
    """Ask the running service what it is, read the cost profile it measured, and find its capacity."""
    with grpc.insecure_channel(address, options=GRPC_OPTIONS) as channel:
        stub = pb_grpc.LongContextStub(channel)  # type: ignore[no-untyped-call]
        answer = stub.ListRecipes(pb.ListRecipesRequest())
    catalog: Catalog = load_catalog(Path(answer.catalog_source), ServedModel(answer.num_layers))[0]
    profile = find_profile(args.cache, answer.cost_source)
    return with_capacity(args, catalog, measure_setup(profile, catalog, spec), spec)


def with_capacity(args: argparse.Namespace, catalog: Catalog, setup: Setup, spec: TraceSpec) -> Setup:
    """The setup with what requests such as these take where many wait."""
    many = replace(spec, duration_s=SAMPLE_S)
    return saturated(args.model_shape, catalog, setup, requests_of(many, objectives_of(args), setup))


async def run_policy(
    address: str, policy: Policy, traces: Mapping[float, Sequence[TraceRequest]], prompts: TokenPrompts
) -> list[Row]:
    """Send every load to a running service, one after the other; each ends when all is answered."""
    rows = []
    async with grpc.aio.insecure_channel(address, options=GRPC_OPTIONS) as channel:
        stub = pb_grpc.LongContextStub(channel)  # type: ignore[no-untyped-call]
        runner = LoadRunner(stub, prompts, TIMEOUT_S)
        for load, trace in traces.items():
            asked = policy.asked(trace)
            await runner.run([replace(each, arrival_ms=0.0) for each in asked[:WARM_UP]])
            rows.append(Row(policy, load, make_report(await runner.run(asked)).total))
            print_row(rows[-1])
    return rows


def print_row(row: Row) -> None:
    """One line of the table."""
    figures = row.figures
    p50, p95 = (figures.ttft_ms[0], figures.ttft_ms[2]) if figures.ttft_ms else (0.0, 0.0)
    print(
        f"{row.policy.name:24}{row.load:>6.1f}{figures.num_requests:>9}{figures.hit_rate:>9.1%}"
        f"{figures.hit_latency_rate:>9.1%}{figures.mean_quality:>9.3f}{figures.num_refused:>9}{figures.num_errors:>8}"
        f"{p50:>11,.0f}{p95:>11,.0f}{figures.goodput_tokens_s:>11,.0f}{figures.ttft_error_median:>9.1%}",
        flush=True,
    )


def print_gains(by_load: Mapping[float, Mapping[str, Any]]) -> None:
    """A sentence for each load."""
    for load, gain in by_load.items():
        print(
            f"at {load:.1f} x capacity the planner meets {gain['hit_rate']:.1%} at quality {gain['mean_quality']:.3f}; "
            f"the best fixed recipe of at least that quality, {gain['best_fixed']}, meets "
            f"{gain['best_fixed_hit_rate']:.1%}: {gain['gain_points']:+.1f} points"
        )


def trace_spec(args: argparse.Namespace, seed: int) -> TraceSpec:
    """What is asked for; at which rate and for how long is found out later."""
    shape = SHAPES[args.model_shape]
    return TraceSpec(
        rate_per_s=1.0,
        duration_s=1.0,
        prompt_tokens=parse_numbers("lengths", args.lengths or shape.lengths),
        max_tokens=parse_numbers("max_tokens", args.max_tokens or shape.max_tokens),
        sla_classes=parse_names("classes", args.classes),
        seed=seed,
    )


def parse_by_class(text: str) -> dict[str, float]:
    """Numbers by SLA class, as `interactive:2,quality:12` writes them; of none, the empty text."""
    return {name: float(number) for name, _, number in (part.partition(":") for part in text.split(",") if part)}


def objectives_of(args: argparse.Namespace) -> Objectives:
    """What requests ask for."""
    shape = SHAPES[args.model_shape]
    return Objectives(
        parse_by_class(args.objectives),
        shape.tpot if args.tpot is None else parse_by_class(args.tpot),
        shape.min_quality if args.min_quality is None else parse_by_class(args.min_quality),
    )


def chosen_policies(args: argparse.Namespace) -> list[Policy]:
    """Those that are named; all but the strict one if none is."""
    policies = all_policies(args.fixed or SHAPES[args.model_shape].fixed)
    return [policy for policy in policies if policy.name in args.policies or not (args.policies or policy.strict)]


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run everything; the figures as data."""
    spec, chosen = trace_spec(args, args.seed), chosen_policies(args)
    model = model_folder(args, folder)
    settings = service_settings(args, folder, model)
    tokenizer = workload.load_tokenizer(model or workload.model_folder(None, torch.bfloat16))
    prompts = TokenPrompts(workload.prompt_tokens(tokenizer, 6000), args.seed)
    rows: list[Row] = []
    setup: Setup | None = None
    traces: dict[float, list[TraceRequest]] = {}
    for scheduling in dict.fromkeys(policy.scheduling for policy in chosen):
        other = {} if scheduling == DEFAULT_SCHEDULING else {"scheduling_policy": scheduling}
        with served(folder / scheduling, {**settings, **other}) as address:
            if setup is None:
                setup = set_up(address, args, spec)
                window_s = setup.window_s(args.minutes * 60, args.loads, chosen)
                for load in args.loads:
                    loaded = replace(spec, rate_per_s=load * setup.capacity_per_s, duration_s=window_s)
                    traces[load] = requests_of(loaded, objectives_of(args), setup)
                print_setup(setup, window_s)
                counts = ", ".join(f"{len(trace)} at {load:.1f} x" for load, trace in traces.items())
                print(f"requests: {counts}\n")
                print_head()
            for policy in chosen:
                if policy.scheduling == scheduling:
                    rows += asyncio.run(run_policy(address, policy, traces, prompts))
    assert setup is not None
    by_load = gains(rows)
    print_gains(by_load)
    return {
        "hardware": workload.hardware(torch.device(args.device)),
        "model": args.model or args.model_shape,
        **as_data(args, setup, rows, by_load),
    }


def as_data(
    args: argparse.Namespace, setup: Setup, rows: Sequence[Row], by_load: Mapping[float, Mapping[str, Any]]
) -> dict[str, Any]:
    """All figures, for JSON."""
    return {
        "reference": setup.reference,
        "capacity_per_s": setup.capacity_per_s,
        "crowding": setup.crowding,
        "mean_work_ms": dict(setup.mean_ms),
        "cost_profile": setup.profile.to_mapping(),
        "objectives": asdict(objectives_of(args)),
        "rows": [{"policy": row.policy.name, "load": row.load, **asdict(row.figures)} for row in rows],
        "gains": by_load,
    }


def print_setup(setup: Setup, window_s: float) -> None:
    """What a request takes, and how many are too many."""
    work = ", ".join(f"{name} {ms:,.0f} ms" for name, ms in setup.mean_ms.items())
    print(f"mean work of a request, by the cost profile: {work}; of a token {setup.token_ms:,.1f} ms")
    print(
        f"capacity: {setup.capacity_per_s:.3f} requests/s under {setup.reference}, each {setup.crowding:.2f} times its "
        f"work where many wait; requests arrive for {window_s:.0f} s"
    )


def print_head() -> None:
    """Of the table."""
    print(
        f"{'policy':24}{'load':>6}{'requests':>9}{'SLA met':>9}{'in time':>9}{'quality':>9}{'refused':>9}{'errors':>8}"
        f"{'TTFT p50':>11}{'TTFT p95':>11}{'goodput':>11}{'off by':>9}",
        flush=True,
    )


def add_load_options(parser: argparse.ArgumentParser) -> None:
    """What is asked of whom."""
    parser.add_argument("--minutes", type=float, default=18.0, help="what all loads of all policies may take, about")
    parser.add_argument("--loads", type=float, nargs="+", default=list(LOADS), help="multiples of the capacity")
    parser.add_argument("--policies", nargs="+", default=[], help="only these (default: all but the strict one)")
    parser.add_argument("--fixed", nargs="+", help="recipes to compare with (default: by shape)")
    parser.add_argument("--lengths", help="prompt tokens (default: by shape), like swaa load")
    parser.add_argument("--max-tokens", help="generated tokens (default: by shape), like swaa load")
    parser.add_argument("--classes", default="interactive:0.4,balanced:0.4,quality:0.2", help="like swaa load")
    parser.add_argument(
        "--objectives",
        default="interactive:2,balanced:4,quality:12",
        help="time to first token by class, in multiples of the mean work under the reference",
    )
    parser.add_argument("--tpot", help="time per token by class, in multiples of one alone; '' for the classes' own")
    parser.add_argument("--min-quality", help="floors by class; '' for the classes' own (both default: by shape)")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_service_options(parser)
    add_load_options(parser)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Measure, print, and end with one line of JSON."""
    args = _arguments()
    with tempfile.TemporaryDirectory(prefix="swaa-sla-") as folder:
        results = measure(args, Path(folder))
    summary = {
        "benchmark": "sla",
        "versions": workload.versions(),
        "date": workload.today(),
        "command": workload.command("benchmarks.bench_sla"),
        **results,
    }
    print("\n" + json.dumps(summary))


if __name__ == "__main__":
    main()
