"""The loaded half of `bench_prediction` in virtual time, where costs are exact: what error is the forecast's own.

    python -m benchmarks.simulate_prediction                             # the default model on a CPU
    python -m benchmarks.simulate_prediction --model-shape qwen3-4b      # Qwen3-4B on an H100

The same lengths, recipes, answers and arrivals, and the real planner and engine of `sla_simulation`. With --causes each
request is run once more without those that come after it: what is off then is not due to them. Figures are simulated,
and no measurement. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks import workload
from benchmarks.bench_prediction import SLA_CLASS, Question, make_questions
from benchmarks.shapes import SHAPES
from benchmarks.sla_models import MODELS, PRICED, load_profile, simulated_service
from benchmarks.sla_policies import Policy
from benchmarks.sla_simulation import Machine
from services.cost import CostProfile, count_layers, decode_keys_of, prefill_work_of
from services.gateway.catalog import Catalog
from services.gateway.sla import RECIPE_HEADER, SLA_HEADER
from services.load.results import Result
from services.load.trace import TraceRequest
from services.replica.calibrate import quantile, relative_error
from swaa_runtime.visibility import Turn


def work_ms(question: Question, catalog: Catalog, profile: CostProfile) -> float:
    """What `bench_prediction` takes for the work of a request: prefill and answer, alone."""
    layers = count_layers(catalog.recipe(RECIPE_HEADER, question.recipe).rules)
    stop = question.prompt_tokens
    keys = decode_keys_of(layers, stop + question.max_tokens // 2)
    token_ms = profile.tpot_ms(keys)
    prefill_ms = profile.prefill_ms(prefill_work_of(layers, (Turn(0, stop),), 0, stop))
    return prefill_ms + question.max_tokens * token_ms


def make_trace(questions: Sequence[Question], mean_gap_ms: float, rng: random.Random) -> list[TraceRequest]:
    """Poisson arrivals of these, the first at once."""
    gaps_ms = [0.0, *(rng.expovariate(1.0 / mean_gap_ms) for _ in questions[1:])]
    return [
        TraceRequest(
            arrival_ms=arrival_ms,
            prompt_tokens=question.prompt_tokens,
            max_tokens=question.max_tokens,
            headers={SLA_HEADER: SLA_CLASS, RECIPE_HEADER: question.recipe},
        )
        for question, arrival_ms in zip(questions, accumulate(gaps_ms), strict=True)
    ]


def figures(errors: Sequence[float]) -> str:
    """Median and 95th percentile in words."""
    return f"{quantile(errors, 0.5):6.1%} (median), {quantile(errors, 0.95):6.1%} (95th percentile)"


def simulate(args: argparse.Namespace) -> dict[str, Any]:
    """Run all seeds; the figures as data."""
    model, shape = MODELS[args.model_shape], SHAPES[args.model_shape]
    profile = load_profile(args.profile) if args.profile else model.profile
    catalog = model.catalog

    def run(trace: Sequence[TraceRequest], seed: int) -> list[Result]:
        machine = Machine(profile, noise=args.noise, seed=seed)
        return simulated_service(args.model_shape, catalog, Policy("planner"), machine).run(trace)

    errors: list[float] = []
    own: list[float] = []
    later: list[float] = []
    by_seed = {}
    print(f"simulated, {len(args.seeds)} seeds of {args.requests} requests; prices: {profile.hardware}")
    for seed in args.seeds:
        rng = random.Random(seed)
        questions = make_questions(args.requests, shape.loaded_lengths, shape.predicted, rng)
        mean_ms = sum(work_ms(question, catalog, profile) for question in questions) / len(questions)
        trace = make_trace(questions, mean_ms / args.utilisation, rng)
        results = run(trace, seed)
        of_seed = [relative_error(result.predicted_ttft_ms, result.ttft_ms) for result in results]
        by_seed[seed] = (round(quantile(of_seed, 0.5), 4), round(quantile(of_seed, 0.95), 4))
        errors += of_seed
        print(f"seed {seed}: TTFT off by {figures(of_seed)}", flush=True)
        for at, (question, result) in enumerate(zip(questions, results, strict=True)):
            line = ""
            if args.causes:
                alone = run(trace[: at + 1], seed)[-1]
                own.append(relative_error(alone.predicted_ttft_ms, alone.ttft_ms))
                later.append(relative_error(alone.ttft_ms, result.ttft_ms))
                line = f"{alone.ttft_ms:12,.0f}"
            if args.lines:
                print(
                    f"  {question.recipe:16}{question.prompt_tokens:8,}{result.predicted_ttft_ms:12,.0f}"
                    f"{result.ttft_ms:12,.0f}{line}{relative_error(result.predicted_ttft_ms, result.ttft_ms):9.1%}"
                )
    print(f"all seeds: TTFT off by {figures(errors)}")
    if args.causes:
        print(f"with none to come: off by {figures(own)}; what those to come add: {figures(later)}")
    return {
        "model": args.model_shape,
        "utilisation": args.utilisation,
        "noise": args.noise,
        "cost_profile": profile.to_mapping(),
        "error_median": round(quantile(errors, 0.5), 4),
        "error_p95": round(quantile(errors, 0.95), 4),
        "by_seed": by_seed,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-shape", choices=PRICED, default="default")
    parser.add_argument("--profile", type=Path, help="prices, as `swaa calibrate` keeps them (default: by shape)")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--utilisation", type=float, default=0.7)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--noise", type=float, default=0.0, help="deviation of the logarithm of a step's time")
    parser.add_argument("--causes", action="store_true", help="tell later arrivals from the forecast")
    parser.add_argument("--lines", action="store_true", help="print each request: predicted, simulated ms, error")
    return parser.parse_args()


def main() -> None:
    """Simulate, print, and end with one line of JSON."""
    results = simulate(_arguments())
    summary = {
        "benchmark": "prediction",
        "simulated": True,
        "versions": workload.versions(),
        "date": workload.today(),
        "command": workload.command("benchmarks.simulate_prediction"),
        **results,
    }
    print("\n" + json.dumps(summary))


if __name__ == "__main__":
    main()
