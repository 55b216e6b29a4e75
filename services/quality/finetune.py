"""The jobs behind `swaa distill` and `swaa finetune`: prompts, answers, training, files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from services.quality.distill import Answered, Keep, reference_example, to_example
from services.quality.examples import Example
from services.quality.flex import packed_kernel
from services.quality.lora import add_lora, save_adapter
from services.quality.practice import Practice, make_practice
from services.quality.tasks.sample import PromptBuilder
from services.quality.training import Step, TrainConfig, Trainer
from swaa_runtime.model.adapters import weights_fingerprint
from swaa_runtime.model.loader import load_model
from swaa_runtime.recipe import Recipe

TRAINING_SEED, CALIBRATION_SEED, CARD_SEED = 0, 1_000_000, 2_000_000
"""Where the seeds of each use start; further runs of one use count up from there."""

FULL = Recipe()


@dataclass(frozen=True, slots=True)
class PracticePlan:
    """Which practice prompts: `count` in all, over tasks and lengths in turn."""

    tasks: tuple[str, ...]
    lengths_tokens: tuple[int, ...]
    count: int
    seed: int

    def items(self) -> list[tuple[str, int, int]]:
        """(task, length, index) of every prompt: all tasks at one length, then at the next, and around again."""
        cells = [(task, length) for length in self.lengths_tokens for task in self.tasks]
        return [(*cells[at % len(cells)], at // len(cells)) for at in range(self.count)]


def make_practices(plan: PracticePlan, tokenizer: Any, num_processes: int = 1) -> list[Practice]:
    """The prompts of a plan, in its order; the same however many processes make them."""
    make = partial(_make, PromptBuilder(tokenizer), plan.seed)
    if num_processes == 1:
        return [make(item) for item in plan.items()]
    with ProcessPoolExecutor(num_processes) as pool:
        return list(pool.map(make, plan.items(), chunksize=8))


def _make(prompts: PromptBuilder, seed: int, item: tuple[str, int, int]) -> Practice:
    task, length, index = item
    return make_practice(prompts, task, length, seed, index)


@dataclass(slots=True)
class Tally:
    """What came of distilling, by task: answers, right ones, kept ones, replaced ones."""

    answers: int = 0
    right: float = 0.0
    kept: int = 0
    replaced: int = 0


def keep_examples(
    answers: Iterable[Answered], tokenizer: Any, keep: Keep, replace_with_reference: bool, tallies: dict[str, Tally]
) -> Iterator[Example]:
    """What is to be learnt from answers (see `to_example`); `tallies` counts them by task as they come."""
    for answered in answers:
        example = to_example(answered, keep, tokenizer, replace_with_reference)
        _count(tallies.setdefault(answered.practice.task, Tally()), answered, keep, example)
        if example is not None:
            yield example


def _count(tally: Tally, answered: Answered, keep: Keep, example: Example | None) -> None:
    tally.answers += 1
    tally.right += answered.score
    tally.kept += answered.is_kept(keep)
    tally.replaced += example is not None and not answered.is_kept(keep)


def reference_examples(plan: PracticePlan, tokenizer: Any, num_processes: int = 1) -> list[Example]:
    """Practice prompts with right answers, without asking any model: what layers are chosen by."""
    return [reference_example(practice, tokenizer) for practice in make_practices(plan, tokenizer, num_processes)]


@dataclass(frozen=True, slots=True)
class FinetuneJob:
    """One training.

    Attributes:
        model_name: what the adapter's configuration calls its model.
        checkpoint_steps: save a checkpoint every so many steps; an unfinished training of the same job goes on from it.
        max_seconds: stop (and save a checkpoint) after this long; None: train to the end.
    """

    model_folder: Path
    recipe: Recipe
    output: Path
    config: TrainConfig
    device: str = "cpu"
    dtype: str = "bfloat16"
    model_name: str = ""
    checkpoint_steps: int = 50
    max_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a training ended: `finished` is whether it came to its end, or was stopped by its time limit."""

    finished: bool
    num_steps: int
    last_loss: float
    seconds: float


def finetune(job: FinetuneJob, examples: Sequence[Example], on_step: Callable[[Step], None]) -> Outcome:
    """Train an adapter for a recipe and write it to `job.output`; log.jsonl there has a line for every step.

    One that its time limit stops is written as it is, and can be trained further from its checkpoint.

    Raises:
        ModelNotSupported: for a model that cannot be run or trained.
        InvalidRequest: for examples that do not fit a pack, or a checkpoint of another job.
    """
    start_s = time.monotonic()
    loaded = load_model(job.model_folder, getattr(torch, job.dtype), torch.device(job.device))
    base = weights_fingerprint(loaded.model)
    peft_model = add_lora(loaded.model, job.config)
    rules = job.recipe.resolve(loaded.shape.num_layers)
    trainer = Trainer(loaded.model, rules, examples, job.config, packed_kernel(torch.device(job.device)))
    checkpoints = job.output / "checkpoint"
    trainer.resume(checkpoints)
    loss, stopped = float("nan"), False
    job.output.mkdir(parents=True, exist_ok=True)
    with (job.output / "log.jsonl").open("a", encoding="utf-8") as log:
        for step in trainer.run():
            loss = step.loss
            log.write(json.dumps(asdict(step) | {"tokens_per_s": step.tokens_per_s}) + "\n")
            log.flush()
            on_step(step)
            stopped = job.max_seconds is not None and time.monotonic() - start_s > job.max_seconds
            if step.step % job.checkpoint_steps == 0 or stopped:
                trainer.save(checkpoints)
            if stopped:
                break
    save_adapter(peft_model, job.output, base, job.recipe, job.model_name)
    return Outcome(trainer.step == trainer.num_steps, trainer.step, loss, time.monotonic() - start_s)
