"""The command lines of `swaa distill`, `swaa finetune` and `swaa calibrate --quality`.

As `python -m services.quality.tune` they also run where only torch, transformers and (to train) peft are installed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from services.quality.distill import Keep, Progress, reference_example
from services.quality.examples import read_examples, write_examples
from services.quality.layers import Kind
from services.quality.options import (
    add_batch_options,
    add_engine_options,
    add_model_options,
    add_shard_option,
)
from services.quality.practice import PRACTICE_TASKS
from services.quality.progress import ProgressBar
from services.quality.recipes import read_recipes
from services.quality.training import Step, TrainConfig
from swaa_runtime.errors import InvalidRequest, SwaaError
from swaa_runtime.recipe import Recipe

LENGTHS = (1000, 2000, 4000, 7000)
TRAIN_FIELDS = ("rank", "alpha", "learning_rate", "epochs", "pack_tokens", "accumulate", "seed")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. What goes wrong is one line on standard error."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (SwaaError, ValueError, RuntimeError, OSError) as exc:
        sys.stderr.write(f"swaa {args.command}: {exc}\n")
        return 1
    return 0


def distill_command(args: argparse.Namespace) -> None:
    """Answer practice prompts by the full-attention model; keep what is good; write examples."""
    import torch

    from services.quality import environment as env
    from services.quality.batched import BatchGenerator, batch_kernel
    from services.quality.distill import answer_all, answer_batched
    from services.quality.finetune import FULL, TRAINING_SEED, PracticePlan, Tally, keep_examples, make_practices
    from swaa_runtime.model.loader import load_model

    dtype = getattr(torch, args.dtype)
    folder = env.model_folder(args.model, dtype)
    tokenizer = env.load_tokenizer(folder)
    plan = PracticePlan(tuple(args.tasks), tuple(args.lengths), args.count, TRAINING_SEED + args.seed)
    shard, num_shards = args.shard
    practices = make_practices(plan, tokenizer, args.processes)[shard::num_shards]
    if args.only_reference:
        write_examples(args.output, (reference_example(practice, tokenizer) for practice in practices))
        return
    loaded = load_model(folder, dtype, torch.device(args.device))
    progress, tallies = _bars("answers"), dict[str, Tally]()
    if args.runner == "batched":
        generator = BatchGenerator(loaded, batch_kernel(loaded.model.device))
        answers = answer_batched(loaded, generator, tokenizer, practices, FULL, args.batch_tokens, progress)
    else:
        longest = max(len(practice.sample.token_ids) + practice.sample.max_new_tokens for practice in practices)
        limits = {"max_running": args.max_running, "max_step_tokens": args.max_step_tokens}
        engine = env.build_engine(loaded, tokenizer, longest, **limits)
        answers = answer_all(engine, tokenizer, practices, FULL, progress)
    write_examples(args.output, keep_examples(answers, tokenizer, args.keep, args.reference, tallies))
    _say({task: asdict(tally) for task, tally in sorted(tallies.items())})


def finetune_command(args: argparse.Namespace) -> None:
    """Train an adapter for a recipe on examples; merge it into a model folder if asked to."""
    import torch

    from services.quality import environment as env
    from services.quality.finetune import FinetuneJob, finetune
    from services.quality.lora import save_merged

    dtype = getattr(torch, args.dtype)
    folder = env.model_folder(args.model, dtype)
    config = TrainConfig(
        targets=tuple(args.targets),
        checkpointing=args.gradient_checkpointing,
        **{field: getattr(args, field) for field in TRAIN_FIELDS},
    )
    job = FinetuneJob(
        folder,
        _recipe(args),
        args.output,
        config,
        args.device,
        args.dtype,
        args.name or folder.name,
        args.checkpoint_steps,
        args.time_limit_s,
    )
    examples = [example for file in args.data for example in read_examples(file)]
    progress, start = _bars("steps"), 0

    def on_step(step: Step) -> None:
        nonlocal start
        start = start or step.step
        progress(step.step - start + 1, step.num_steps - start + 1)

    outcome = finetune(job, examples, on_step)
    _say(asdict(outcome) | {"examples": len(examples)})
    if args.merge is not None:
        save_merged(folder, args.output, args.merge, dtype)


def calibrate_command(args: argparse.Namespace) -> None:
    """Choose layers by the likelihood of right answers; write recipes with a quality card."""
    import torch

    from services.quality import calibration as cal
    from services.quality import environment as env
    from services.quality.finetune import PracticePlan
    from services.quality.flex import packed_kernel
    from swaa_runtime.model.loader import load_model

    dtype, device = getattr(torch, args.dtype), torch.device(args.device)
    folder = env.model_folder(args.model, dtype)
    tokenizer, loaded = env.load_tokenizer(folder), load_model(folder, dtype, device)
    plan = cal.CalibrationPlan(
        _recipe(args),
        args.kind,
        tuple(args.num_layers),
        tuple(args.methods),
        PracticePlan(tuple(args.tasks), tuple(args.lengths), args.count, args.seed),
        args.card_count,
        args.candidates,
        args.pack_tokens,
    )
    chosen_by, card = cal.calibration_examples(plan, tokenizer, args.processes)
    kernel, layers = packed_kernel(device), loaded.shape.num_layers
    progress = _bars("scores")
    score, packs = cal.scorer(loaded.model, chosen_by, layers, plan.pack_tokens, kernel, device)
    choices = cal.choose(plan, score, packs, loaded.model, progress)
    held_out, _ = cal.scorer(loaded.model, card, layers, plan.pack_tokens, kernel, device)
    judged = cal.judge(plan, choices, held_out)
    recalls: dict[str, Any] = {}
    if args.recall:
        longest = max(len(example.token_ids) for example in card) + 256
        engine = env.build_engine(
            loaded, tokenizer, longest, max_running=args.max_running, max_step_tokens=args.max_step_tokens
        )
        for name, recipe in [("full", Recipe()), *((one.name, one.recipe) for one in judged)]:
            recalls[name] = asdict(cal.recall(engine, tokenizer, plan, recipe, progress))
    document = {
        "model": args.name or folder.name,
        "model_fingerprint": loaded.fingerprint,
        "card": {
            "hardware": env.hardware(device),
            "date": env.today(),
            "command": env.command("swaa"),
            "versions": env.versions(),
            "tasks": args.tasks,
            "lengths_tokens": args.lengths,
            "calibration_prompts": len(chosen_by),
            "held_out_prompts": len(card),
            "full": {"nll": asdict(judged[0].full_nll), "recall": recalls.get("full")},
        },
        "recipes": [
            {
                "name": one.name,
                "description": f"{args.kind} layers chosen by {one.method}",
                "recipe": one.recipe.to_mapping(),
                "card": {"nll": asdict(one.nll), "recall": recalls.get(one.name)},
            }
            for one in judged
        ],
        "figures": {choice.method: choice.figures for choice in choices},
    }
    args.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    _say({one.name: [round(one.nll.mean, 4), recalls.get(one.name, {}).get("mean")] for one in judged})


def _recipe(args: argparse.Namespace) -> Recipe:
    """The recipe of --recipe: JSON itself, or NAME of the file --recipes."""
    if args.recipe.lstrip().startswith("{"):
        return Recipe.from_mapping(json.loads(args.recipe))
    rows = {} if args.recipes is None else {row.name: row.recipe for row in read_recipes(args.recipes)}
    if args.recipe not in rows:
        raise InvalidRequest(
            "recipe", args.recipe, f"must be JSON, or of the file --recipes: {', '.join(rows) or 'none'}"
        )
    return rows[args.recipe]


def _bars(label: str) -> Progress:
    """Shows each series of (done, total) that begins at 1 as a bar."""
    bars: list[ProgressBar] = []

    def progress(done: int, total: int) -> None:
        if done == 1 or not bars:
            bars.append(ProgressBar(total, label))
        bars[-1].advance()

    return progress


def _say(data: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(data) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="swaa", description="Train adapters for recipes; choose layers of recipes.")
    commands = parser.add_subparsers(required=True, dest="command")
    distill = _command(commands, "distill", distill_command)
    _practice_options(distill, 600)
    add_engine_options(distill)
    distill.add_argument("--keep", choices=get_args(Keep), default="right", help="which answers to learn from")
    distill.add_argument("--reference", action="store_true", help="replace the others by the reference answer")
    distill.add_argument("--only-reference", action="store_true", help="do not ask the model: reference answers only")
    add_batch_options(distill)
    add_shard_option(distill)
    distill.add_argument("--output", type=Path, required=True, help="file of examples (JSON lines)")
    finetune = _command(commands, "finetune", finetune_command)
    _recipe_options(finetune)
    finetune.add_argument("--data", type=Path, nargs="+", required=True, help="files that `distill` wrote")
    finetune.add_argument("--output", type=Path, required=True, help="folder of adapter, log and checkpoint")
    finetune.add_argument("--name", help="the model's name in the adapter's configuration (default: its folder's)")
    finetune.add_argument("--merge", type=Path, help="also write a Hugging Face folder with the adapter merged")
    defaults = TrainConfig()
    for field in TRAIN_FIELDS:
        value = getattr(defaults, field)
        finetune.add_argument(f"--{field.replace('_', '-')}", type=type(value), default=value, help=f"default {value}")
    finetune.add_argument("--targets", nargs="+", default=list(defaults.targets), help="modules that get an update")
    finetune.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    finetune.add_argument("--checkpoint-steps", type=int, default=50, help="steps between checkpoints")
    finetune.add_argument("--time-limit-s", type=float, help="stop with a checkpoint after so many seconds")
    calibrate = _command(commands, "calibrate", calibrate_command)
    _recipe_options(calibrate)
    _practice_options(calibrate, 28)
    add_engine_options(calibrate)
    calibrate.add_argument("--kind", choices=get_args(Kind), default="lookback", help="what chosen layers do")
    calibrate.add_argument("--num-layers", type=int, nargs="+", default=[10], help="how many to choose")
    calibrate.add_argument("--methods", nargs="+", default=["leave-one-out", "greedy", "lazy-ratio"], help="also: swap")
    calibrate.add_argument("--candidates", type=int, default=0, help="greedy tries the best so many only; 0: all")
    calibrate.add_argument("--card-count", type=int, default=28, help="held-out prompts of the quality card")
    calibrate.add_argument("--recall", action="store_true", help="measure recall for the card, too: generates answers")
    calibrate.add_argument("--pack-tokens", type=int, default=16384, help="rows of one forward")
    calibrate.add_argument("--name", help="the model's name in the card (default: its folder's)")
    calibrate.add_argument("--output", type=Path, required=True, help="JSON file of recipes with their card")
    return parser


def _command(commands: Any, name: str, run: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=run.__doc__)
    command.set_defaults(run=run)
    add_model_options(command)
    return command


def _recipe_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--recipe", required=True, help="JSON, or a name of the file --recipes")
    command.add_argument("--recipes", type=Path, help="JSON or YAML file of named recipes")


def _practice_options(command: argparse.ArgumentParser, count: int) -> None:
    command.add_argument("--tasks", nargs="+", default=list(PRACTICE_TASKS), choices=PRACTICE_TASKS)
    command.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="prompt lengths in tokens")
    command.add_argument("--count", type=int, default=count, help="prompts in all")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--processes", type=int, default=1, help="that make prompts")


if __name__ == "__main__":
    sys.exit(main())
