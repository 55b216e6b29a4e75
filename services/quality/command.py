"""The command line of evaluation: `swaa eval run` and `swaa eval report`, or `python -m services.quality`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from services.quality.options import (
    add_batch_options,
    add_engine_options,
    add_model_options,
    add_shard_option,
)
from services.quality.progress import ProgressBar
from services.quality.recipes import Row, read_recipes
from services.quality.report import Results, markdown, quality_table, tasks_of_mean
from services.quality.results import Key, Record, ResultsFile, Scored, Setting, read_records
from services.quality.tasks.registry import DEFAULT_TASKS, find_task
from swaa_runtime.errors import SwaaError

ABLATION = Path(__file__).parent / "data" / "ablation_smollm2.json"
LENGTHS = (1000, 2000, 4000, 8000)
MAX_ANSWER_TOKENS = 192
TABLE, MARKDOWN, PLOT = "quality.json", "quality.md", "pareto.png"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. What goes wrong is one line on standard error."""
    args = _parser().parse_args(argv)
    try:
        args.command(args)
    except (SwaaError, ValueError, RuntimeError, OSError) as exc:
        sys.stderr.write(f"swaa eval: {exc}\n")
        return 1
    return 0


def run(args: argparse.Namespace) -> None:
    """Measure what is not measured yet, then report."""
    rows = _rows(args)
    records = list(read_records(args.output))
    done = {record.key for record in records if isinstance(record, Scored)}
    shard, num_shards = args.shard
    with ResultsFile(args.output / f"{args.file}.jsonl") as file:
        _measure(args, rows, done, file, shard, num_shards)
    if not args.no_report:
        report(args)


def _measure(
    args: argparse.Namespace, rows: list[Row], done: set[Key], file: ResultsFile, shard: int, num_shards: int
) -> None:
    import torch  # here and below: reports need no model

    from services.quality import environment as env
    from services.quality.batched import BatchGenerator, batch_kernel
    from services.quality.evaluate import BatchedEvaluation, Evaluation, Plan, count_jobs, jobs, run_perplexity
    from services.quality.perplexity import TextSamples
    from services.quality.speed import time_prefills
    from services.quality.tasks.sample import PromptBuilder
    from swaa_runtime.model.loader import load_model

    stop_s = None if args.time_limit_s is None else time.monotonic() + args.time_limit_s
    tasks = [find_task(name) for name in args.tasks]
    dtype, device = getattr(torch, args.dtype), torch.device(args.device)
    folder = env.model_folder(args.model, dtype)
    adapters = {name: Path(at) for name, _, at in (text.partition("=") for text in args.adapter)}
    loaded, tokenizer = load_model(folder, dtype, device, adapters), env.load_tokenizer(folder)
    rows = [replace(row, recipe=loaded.adapters.pin(row.recipe)) for row in rows]
    longest = max(args.lengths)
    longest_total = min(longest + MAX_ANSWER_TOKENS, max(loaded.shape.max_model_tokens, longest + 1))
    engine = env.build_engine(
        loaded, tokenizer, longest_total, max_running=args.max_running, max_step_tokens=args.max_step_tokens
    )
    hardware = env.hardware(device)
    file.append(
        Setting(
            model=args.name or folder.name,
            model_fingerprint=loaded.fingerprint,
            hardware=hardware,
            date=env.today(),
            command=env.command("swaa eval"),
            versions=env.versions(),
            recipes={row.name: row.recipe.to_mapping() for row in rows},
        )
    )
    texts = TextSamples.from_tokenizer(tokenizer) if args.timing_repeats or args.perplexity_samples else None
    if texts is not None and args.timing_repeats:
        time_prefills(engine, rows, texts.token_ids, args.lengths, args.timing_repeats, hardware, file.append)
    if texts is not None and args.perplexity_samples:
        text_plan = Plan(rows, (), args.lengths, args.perplexity_samples, args.seed, shard, num_shards)
        run_perplexity(text_plan, engine, texts, done, file.append, stop_s)
    plan = Plan(rows, tasks, args.lengths, args.samples, args.seed, shard, num_shards)
    bar = ProgressBar(count_jobs(plan, done), "samples")

    def keep(record: Record) -> None:
        file.append(record)
        bar.advance()

    todo = jobs(plan, PromptBuilder(tokenizer), done)
    if args.runner == "batched":
        generator = BatchGenerator(loaded, batch_kernel(device))
        BatchedEvaluation(loaded, generator, tokenizer, args.batch_tokens).run(todo, keep, stop_s)
    else:
        Evaluation(engine).run(todo, keep, stop_s)


def report(args: argparse.Namespace) -> None:
    """Write quality table, Markdown and plot of a results folder; print the Markdown."""
    results = Results.collect(read_records(args.output))
    tasks = args.mean_tasks or tasks_of_mean(results)
    table = quality_table(results, tasks, args.note, args.table_lengths)
    (args.output / TABLE).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    text = markdown(table)
    (args.output / MARKDOWN).write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    if any("ttft_ms" in entry for entry in table["recipes"].values()):
        from services.quality.plots import plot_pareto

        plot_pareto(table, args.output / PLOT)


def _rows(args: argparse.Namespace) -> list[Row]:
    rows = read_recipes(args.recipes)
    if args.only:
        unknown = set(args.only) - {row.name for row in rows}
        if unknown:
            raise ValueError(f"{args.recipes.name} has no recipe {sorted(unknown)[0]!r}")
        rows = [row for row in rows if row.name in args.only]
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="swaa eval", description="Measure what recipes cost in quality.")
    commands = parser.add_subparsers(required=True)
    measure = commands.add_parser("run", help="measure recipes on tasks; goes on where an earlier run stopped")
    show = commands.add_parser("report", help="make tables and plot of what was measured")
    for command in (measure, show):
        command.add_argument("--output", type=Path, default=Path(".cache/eval"), help="folder of results")
        command.add_argument("--mean-tasks", nargs="+", help="tasks that count in the mean (default: generated, @end)")
        command.add_argument(
            "--table-lengths", type=int, nargs="+", help="lengths in the table (default: all measured)"
        )
        command.add_argument("--note", default="", help="kept in the table: how this was measured")
    show.set_defaults(command=report)
    measure.set_defaults(command=run)
    add = measure.add_argument
    add("--recipes", type=Path, default=ABLATION, help="JSON or YAML file of named recipes")
    add("--only", nargs="+", help="measure only the recipes of these names")
    add("--tasks", nargs="+", default=list(DEFAULT_TASKS), help="NAME, NAME@start, NAME@both, or KIND:PATH of a file")
    add("--lengths", type=int, nargs="+", default=list(LENGTHS), help="prompt lengths in tokens")
    add("--samples", type=int, default=30, help="samples of each task at each length")
    add("--perplexity-samples", type=int, default=0, help="texts for perplexity by position")
    add("--timing-repeats", type=int, default=0, help="prefills to time, of each recipe at each length")
    add("--adapter", nargs="+", default=[], metavar="NAME=FOLDER", help="adapters that recipes name")
    add("--seed", type=int, default=0)
    add("--name", help="the model's name in the table (default: its folder's)")
    add_model_options(measure)
    add_batch_options(measure)
    add_engine_options(measure)
    add_shard_option(measure)
    add("--file", default="samples", help="name of this process's file in the results folder")
    add("--time-limit-s", type=float, help="start no sample after so many seconds")
    add("--no-report", action="store_true", help="only measure")
    return parser
