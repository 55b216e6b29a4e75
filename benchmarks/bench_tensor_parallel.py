"""One replica on two GPUs of a host: first token and next tokens of a model of Qwen3-4B's shape, beside one GPU.

    python -m benchmarks.bench_tensor_parallel                  # all rows, about 3 minutes on two H100
    python -m benchmarks.bench_tensor_parallel --rows sliding --pieces 1 2 4

Weights are random, in bfloat16; prompts are random tokens. Two GPUs run once for each number of pieces that rows are
cut into (see `Group.pieces`): with one, no sum over the GPUs is hidden behind other work. The logits of two GPUs are
held to the oracle by the measure that one GPU's are held to it (`gpu_checks.check_tokens`). The last line is JSON.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks import workload
from benchmarks.bench_gpu import (
    LONG,
    RECIPES,
    Bench,
    decode_times_ms,
    make_model,
    prefill_times_s,
    timed,
)
from benchmarks.gpu_checks import check_tokens
from swaa_runtime.config import EngineConfig
from swaa_runtime.recipe import Recipe
from swaa_runtime.runner import ModelRunner
from swaa_runtime.tensor_parallel.orders import Rank
from swaa_runtime.tensor_parallel.ranks import Ranks, rank_devices
from swaa_runtime.tensor_parallel.runner import SharedRunner

SIZE = 2
HANG_S = 420.0
"""A run that has not ended by then shows where it is, and ends."""

SUM_ROWS = 8192, 4096, 1
"""Of hidden states whose sum is timed by itself."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one prompt, by number of GPUs; `shared` by number of pieces."""

    name: str
    unit: str
    alone: float
    shared: dict[int, float]

    @property
    def speedup(self) -> float:
        """Of the best number of pieces."""
        return self.alone / min(self.shared.values())


@dataclass(frozen=True, slots=True)
class CutInto:
    """An order: cut rows into so many pieces from now on."""

    num_pieces: int

    def obey(self, rank: Rank) -> None:
        """On this rank."""
        rank.group.num_pieces = self.num_pieces


@dataclass(frozen=True, slots=True)
class Sum:
    """An order: take part in sums of hidden states, as many times."""

    num_rows: int
    width: int
    times: int

    def obey(self, rank: Rank) -> None:
        """On this rank."""
        x = torch.zeros(self.num_rows, self.width, dtype=torch.bfloat16, device=rank.group.device)
        for _ in range(self.times):
            rank.group.sum(x)


class SharedBench(Bench):
    """The same on several GPUs."""

    def __init__(self, alone: Bench, ranks: Ranks) -> None:
        vars(self).update(vars(alone))
        self.ranks = ranks

    def runner(self, config: EngineConfig) -> ModelRunner:
        """What runs the model, on all ranks."""
        return SharedRunner(self.ranks, config)

    def cut_into(self, num_pieces: int) -> None:
        """On all ranks."""
        self.ranks.order(CutInto(num_pieces))
        self.ranks.group.num_pieces = num_pieces

    def sum_us(self, num_rows: int, times: int = 20) -> float:
        """Of hidden states of so many rows."""
        order = Sum(num_rows, self.loaded.model.config.hidden_size, times)
        self.ranks.order(order)
        rank = Rank(self.ranks.group, self.ranks.loaded)
        torch.cuda.synchronize()
        return timed(lambda: order.obey(rank)) / times * 1e6


def prefill_s(bench: Bench, recipe: Recipe, num_tokens: int) -> float:
    """Median time to first token of one prompt, through all layers."""
    return statistics.median(prefill_times_s(bench, recipe, num_tokens))


def decode_ms(bench: Bench, recipe: Recipe, num_tokens: int, count: int = 48) -> float:
    """Median time per token after a prompt."""
    return statistics.median(decode_times_ms(bench, recipe, num_tokens, count))


Measure = Callable[[Bench], float]

ROWS: dict[str, tuple[str, str, Measure]] = {
    "sliding": ("TTFT 131k, all sliding", "s", lambda b: prefill_s(b, RECIPES["sliding"], LONG)),
    "full-8k": ("TTFT 8k, full", "s", lambda b: prefill_s(b, RECIPES["full"], 8_192)),
    "full-16k": ("TTFT 16k, full", "s", lambda b: prefill_s(b, RECIPES["full"], 16_384)),
    "full-32k": ("TTFT 32k, full", "s", lambda b: prefill_s(b, RECIPES["full"], 32_768)),
    "quarter": ("TTFT 131k, a quarter full", "s", lambda b: prefill_s(b, RECIPES["quarter"], LONG)),
    "full": ("TTFT 131k, full", "s", lambda b: prefill_s(b, RECIPES["full"], LONG)),
    "tpot-sliding": ("TPOT after 131k, all sliding", "ms", lambda b: decode_ms(b, RECIPES["sliding"], LONG)),
    "tpot-full": ("TPOT after 131k, full decode", "ms", lambda b: decode_ms(b, RECIPES["full-decode"], LONG)),
}
ONE_PIECE = ("tpot-sliding", "tpot-full")
"""Their rows are too few to cut."""


def measure(alone: Bench, shared: SharedBench, row: str, pieces: list[int]) -> Measured:
    """One row on one GPU and on all."""
    name, unit, work = ROWS[row]
    one = _freed(work, alone)
    times = {}
    for count in pieces[:1] if row in ONE_PIECE else pieces:
        shared.cut_into(count)
        times[count] = _freed(work, shared)
    measured = Measured(name, unit, one, times)
    by_pieces = ", ".join(f"{took:.3f} ({count})" for count, took in times.items())
    print(f"{name:32}{one:9.3f} {unit} on one; on {SIZE}: {by_pieces}; x {measured.speedup:.2f}", flush=True)
    return measured


def _freed(work: Measure, bench: Bench) -> float:
    took = work(bench)
    gc.collect()
    torch.cuda.empty_cache()
    return took


def run(args: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    """Check, measure, print."""
    alone = Bench(args)
    shared = SharedBench(alone, ranks)
    print(f"{SIZE} x {workload.hardware(alone.device)}; {alone.rates.matmul_flops / 1e12:.0f} TFLOP/s", flush=True)
    sums = {rows: round(shared.sum_us(rows), 1) for rows in (*SUM_ROWS, *SUM_ROWS)}
    print(f"sums of so many rows, us: {sums}", flush=True)
    rows = [measure(alone, shared, row, args.pieces) for row in args.rows]
    shared.cut_into(max(args.pieces))
    recipes = {name: RECIPES[name] for name in ("sliding", "lookback", "full")}
    errors = check_tokens(alone.loaded, recipes, 6000, 4096, args.block_tokens, shared.runner)
    print("against the oracle: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()), flush=True)
    return {
        "matmul_tflops": round(alone.rates.matmul_flops / 1e12, 1),
        "sum_us": sums,
        "errors_against_oracle": errors,
        "rows": [asdict(each) | {"speedup": round(each.speedup, 3)} for each in rows],
    }


def main() -> None:
    """Parse, start the ranks, end them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=[row for row in ROWS if row != "full"])
    parser.add_argument("--pieces", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--step-tokens", type=int, default=8192, help="the engine's tokens a step")
    parser.add_argument("--block-tokens", type=int, default=64, help="tokens of a KV block")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    start = time.perf_counter()
    ranks = Ranks(make_model, rank_devices(args.device, SIZE))
    print(f"ranks are up after {time.perf_counter() - start:.1f} s", flush=True)
    try:
        results = run(args, ranks)
    finally:
        ranks.close()
    summary = {
        "benchmark": "tensor-parallel",
        "hardware": f"{SIZE} x {workload.hardware(torch.device(args.device))}",
        "versions": workload.versions(),
        "date": workload.today(),
        "command": workload.command("benchmarks.bench_tensor_parallel"),
        **results,
    }
    print("\n" + json.dumps(summary))


if __name__ == "__main__":
    main()
