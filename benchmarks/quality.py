"""Needle recall of recipes at several prompt lengths: the planner's quality table.

    python -m benchmarks.quality --recipes services/gateway/data/catalogs/smollm2.yaml --output quality.json

All samples of one recipe are queued at once and share steps by continuous batching, as requests of a replica do.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks import workload
from benchmarks.needles import NeedleSample, make_sample
from swaa_runtime.engine import Engine
from swaa_runtime.model.loader import LoadedModel, load_model
from swaa_runtime.outputs import Finished
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import SamplingParams, new_request

TASK = "single needle, exact match, chat template, greedy"
MAX_NEW_TOKENS = 24
LENGTHS = (1000, 2000, 4000, 7000)

Samples = Mapping[int, Sequence[NeedleSample]]
"""Prompt length in tokens to the samples of that length."""


def read_recipes(file: Path) -> dict[str, Recipe]:
    """Recipes by name, from a catalogue, or from {name: mapping} in YAML or JSON."""
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    named = {item["name"]: item["recipe"] for item in data["recipes"]} if "recipes" in data else data
    return {name: Recipe.from_mapping(mapping) for name, mapping in named.items()}


def make_samples(tokenizer: Any, lengths: Sequence[int], count: int, seed: int) -> Samples:
    """The same samples for the same seed, whatever else is measured beside them."""
    return {
        length: [make_sample(tokenizer, length, random.Random(f"{seed}/{length}/{index}")) for index in range(count)]
        for length in lengths
    }


def measure(engine: Engine, loaded: LoadedModel, tokenizer: Any, recipe: Recipe, samples: Samples) -> list[float]:
    """Recall of one recipe at each length."""
    answers: dict[str, str] = {}
    sampling = SamplingParams(max_tokens=MAX_NEW_TOKENS)
    for length, of_length in samples.items():
        for index, sample in enumerate(of_length):
            request_id = f"{length}/{index}"
            answers[request_id] = sample.answer
            engine.add(new_request(request_id, sample.token_ids, recipe, loaded.shape.num_layers, sampling))
    hits = dict.fromkeys(samples, 0)
    while engine.has_work:
        for output in engine.step():
            if isinstance(output, Finished):
                length = int(output.request_id.split("/")[0])
                hits[length] += answers[output.request_id] in _generated_text(tokenizer, output, samples)
    return [hits[length] / len(of_length) for length, of_length in samples.items()]


def _generated_text(tokenizer: Any, output: Finished, samples: Samples) -> str:
    length, index = (int(part) for part in output.request_id.split("/"))
    prompt_stop = len(samples[length][index].token_ids)
    text: str = tokenizer.decode(output.token_ids[prompt_stop:], skip_special_tokens=True)
    return text


def report(
    folder: Path, loaded: LoadedModel, args: argparse.Namespace, recall: Mapping[str, tuple[Recipe, list[float]]]
) -> dict[str, Any]:
    """The quality table as data."""
    return {
        "model": folder.name,
        "model_fingerprint": loaded.fingerprint,
        "task": TASK,
        "measured": {
            "hardware": workload.hardware(loaded.model.device),
            "date": workload.today(),
            "command": workload.command("benchmarks.quality"),
            "samples": args.samples,
            "versions": workload.versions(),
        },
        "lengths_tokens": args.lengths,
        "recipes": {name: {"recipe": recipe.to_mapping(), "recall": row} for name, (recipe, row) in recall.items()},
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", type=Path, required=True, help="catalogue, or YAML or JSON of named recipes")
    parser.add_argument("--only", nargs="*", help="measure only the recipes of these names")
    parser.add_argument("--output", type=Path, help="JSON file to write after every recipe")
    parser.add_argument("--model", type=Path, help="Hugging Face folder (default: the shipped model)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--samples", type=int, default=20, help="samples per length")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="prompt lengths in tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-running", type=int, default=8, help="requests that hold KV memory at a time")
    parser.add_argument("--max-step-tokens", type=int, default=1024, help="tokens per step; bounds attention's memory")
    return parser.parse_args()


def main() -> None:
    """Measure every recipe, print a row for each, and write the table."""
    args = _arguments()
    dtype = getattr(torch, args.dtype)
    folder = workload.model_folder(args.model, dtype)
    loaded = load_model(folder, dtype, torch.device(args.device))
    tokenizer = workload.load_tokenizer(folder)
    samples = make_samples(tokenizer, args.lengths, args.samples, args.seed)
    engine = workload.build_engine(
        loaded,
        tokenizer,
        max(args.lengths) + MAX_NEW_TOKENS,
        max_running=args.max_running,
        max_step_tokens=args.max_step_tokens,
        max_waiting=args.samples * len(args.lengths),
    )
    print(f"{'recipe':32}" + "".join(f"{length:>8}" for length in args.lengths) + f"{'seconds':>10}", flush=True)
    recall: dict[str, tuple[Recipe, list[float]]] = {}
    for name, recipe in read_recipes(args.recipes).items():
        if args.only and name not in args.only:
            continue
        start = time.monotonic()
        row = measure(engine, loaded, tokenizer, recipe, samples)
        recall[name] = (recipe, row)
        seconds = time.monotonic() - start
        print(f"{name:32}" + "".join(f"{value:8.2f}" for value in row) + f"{seconds:10.1f}", flush=True)
        if args.output:
            text = json.dumps(report(folder, loaded, args, recall), indent=1)
            args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
