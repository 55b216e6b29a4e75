"""Time to first token and KV memory: transformers' own generate() against the engine, under full attention and recipes.

    python -m benchmarks.bench_prefill --lengths 2000 4000 8000 --repeats 3

One process, one model in two copies (each side loads the weights its own way), the same prompts, runs interleaved
(A B C A B C) so that a busy machine slows all contenders alike. The last line of the output is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks import workload
from services.quality.recipes import read_recipes
from swaa_runtime.engine import Engine
from swaa_runtime.model.loader import LoadedModel, fast_dtype, load_model
from swaa_runtime.outputs import Finished
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import SamplingParams, new_request

BASELINE = "transformers"
CATALOGUE = workload.REPO / "services" / "gateway" / "data" / "catalogs" / "smollm2.yaml"
RECIPES = ("full", "wide-tail", "sliding-tail", "sliding")


@dataclass(frozen=True, slots=True)
class Run:
    """One prefill: seconds to the first token, that token, and KV bytes (0 where not known)."""

    seconds: float
    token_id: int
    peak_kv_bytes: int = 0
    resident_kv_bytes: int = 0


Contender = Callable[[Sequence[int]], Run]


def baseline(folder: Path, dtype: torch.dtype, device: torch.device) -> Contender:
    """transformers as its documentation says to use it: weights loaded by it, SDPA, generate()."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    model.to(device).eval()

    def run(token_ids: Sequence[int]) -> Run:
        start = time.perf_counter()
        ids = torch.tensor([token_ids], device=device)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False)
        token_id = int(out[0, -1])
        return Run(time.perf_counter() - start, token_id)

    return run


def engine_contender(engine: Engine, recipe: Recipe, num_layers: int) -> Contender:
    """The engine under one recipe; asked for two tokens, so that what stays resident while decoding is seen too."""

    def run(token_ids: Sequence[int]) -> Run:
        request = new_request("bench", token_ids, recipe, num_layers, SamplingParams(max_tokens=2, ignore_eos=True))
        bytes_per_block = engine.runner.storage.bytes_per_block
        start = time.perf_counter()
        engine.add(request)
        while request.num_generated_tokens == 0:
            engine.step()
        seconds = time.perf_counter() - start
        finished = next(out for out in engine.step() if isinstance(out, Finished))
        return Run(
            seconds,
            request.token_ids[len(token_ids)],
            finished.peak_blocks * bytes_per_block,
            finished.resident_blocks * bytes_per_block,
        )

    return run


def interleave(contenders: Mapping[str, Contender], token_ids: Sequence[int], repeats: int) -> dict[str, list[Run]]:
    """Warm each contender up on this prompt, then run all of them in turn, `repeats` times."""
    for contender in contenders.values():
        contender(token_ids)
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            runs[name].append(contender(token_ids))
    return runs


def summarise(runs: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, Any]]:
    """Median and spread per contender, and each in proportion to the baseline and to full attention."""
    baseline_s = statistics.median(run.seconds for run in runs[BASELINE])
    token_id, full = runs[BASELINE][0].token_id, runs["full"][0]
    rows: dict[str, dict[str, Any]] = {}
    for name, of_name in runs.items():
        seconds = [run.seconds for run in of_name]
        median = statistics.median(seconds)
        rows[name] = {
            "ttft_s": round(median, 4),
            "ttft_min_s": round(min(seconds), 4),
            "ttft_max_s": round(max(seconds), 4),
            "speedup": round(baseline_s / median, 3),
            "first_token_id": of_name[0].token_id,
            "first_token_agrees": all(run.token_id == token_id for run in of_name),
        }
        if name != BASELINE:
            rows[name] |= {
                "peak_kv_bytes": of_name[0].peak_kv_bytes,
                "resident_kv_bytes": of_name[0].resident_kv_bytes,
                "peak_kv_vs_full": round(of_name[0].peak_kv_bytes / full.peak_kv_bytes, 3),
                "resident_kv_vs_full": round(of_name[0].resident_kv_bytes / full.resident_kv_bytes, 3),
            }
    return rows


def print_table(num_tokens: int, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """One prompt length, one line per contender."""
    print(f"\n{num_tokens} prompt tokens")
    print(f"  {'':18}{'TTFT s':>8}{'min..max':>16}{'speedup':>9}{'peak MiB':>10}{'resident MiB':>14}  first token")
    for name, row in rows.items():
        spread = f"{row['ttft_min_s']:.2f}..{row['ttft_max_s']:.2f}"
        peak, resident = (
            f"{row[key] / 2**20:.1f}" if key in row else "-" for key in ("peak_kv_bytes", "resident_kv_bytes")
        )
        agrees = "same" if row["first_token_agrees"] else "differs"
        print(
            f"  {name:18}{row['ttft_s']:8.2f}{spread:>16}{row['speedup']:8.2f}x{peak:>10}{resident:>14}"
            f"  {row['first_token_id']} ({agrees})",
            flush=True,
        )


def contenders_for(
    folder: Path,
    loaded: LoadedModel,
    tokenizer: Any,
    recipes: Mapping[str, Recipe],
    args: argparse.Namespace,
    dtype: torch.dtype,
) -> dict[str, Contender]:
    """The baseline, then the engine under each recipe."""
    engine = workload.build_engine(
        loaded, tokenizer, max(args.lengths) + 2, max_running=1, max_step_tokens=args.max_step_tokens
    )
    contenders = {BASELINE: baseline(folder, dtype, loaded.model.device)}
    for name, recipe in recipes.items():
        contenders[name] = engine_contender(engine, recipe, loaded.shape.num_layers)
    return contenders


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2000, 4000, 8000], help="prompt lengths in tokens")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs per contender and length")
    parser.add_argument("--model", type=Path, help="Hugging Face folder (default: the shipped model)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="default: the device's fast one")
    parser.add_argument("--max-step-tokens", type=int, default=1024, help="the engine's tokens per step")
    return parser.parse_args()


def main() -> None:
    """Measure all lengths, print a table for each, and everything as one line of JSON."""
    args = _arguments()
    dtype = getattr(torch, args.dtype) if args.dtype else fast_dtype(torch.device(args.device))
    folder = workload.model_folder(args.model, dtype)
    loaded = load_model(folder, dtype, torch.device(args.device))
    tokenizer = workload.load_tokenizer(folder)
    recipes = {row.name: row.recipe for row in read_recipes(CATALOGUE) if row.name in RECIPES}
    contenders = contenders_for(folder, loaded, tokenizer, recipes, args, dtype)
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for num_tokens in args.lengths:
        rows = summarise(interleave(contenders, workload.prompt_tokens(tokenizer, num_tokens), args.repeats))
        print_table(num_tokens, rows)
        results[str(num_tokens)] = rows
    summary = {
        "benchmark": "prefill",
        "model": folder.name,
        "model_fingerprint": loaded.fingerprint,
        "dtype": str(dtype).removeprefix("torch."),
        "hardware": workload.hardware(loaded.model.device),
        "versions": workload.versions(),
        "date": workload.today(),
        "command": workload.command("benchmarks.bench_prefill"),
        "repeats": args.repeats,
        "max_step_tokens": args.max_step_tokens,
        "recipes": {name: recipe.to_mapping() for name, recipe in recipes.items()},
        "results_by_prompt_tokens": results,
    }
    print("\n" + json.dumps(summary))


if __name__ == "__main__":
    main()
