"""Runs samples under recipes through the engine; they share its steps by continuous batching, as served requests do.

Samples come index by index over all tasks, lengths and recipes, so that a run that is cut off has measured every
cell about equally often. What is done already is skipped.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from services.quality.batched import BatchGenerator
from services.quality.perplexity import TextSamples, nats_per_token
from services.quality.recipes import Row
from services.quality.results import PERPLEXITY, Key, Scored
from services.quality.tasks.sample import FileTask, PromptBuilder, Sample, Task
from swaa_runtime.engine import Engine
from swaa_runtime.model.adapters import AdapterRows
from swaa_runtime.model.loader import LoadedModel
from swaa_runtime.outputs import Finished, Output, TokenOutput
from swaa_runtime.request import SamplingParams, new_request
from swaa_runtime.visibility import Turn, adapter_start

FEED_AHEAD = 2
"""Requests that wait beside those that run: enough to never leave the engine idle, few enough to make samples late."""


MAX_BATCH = 35
"""Prompts of a padded batch: enough to fill a GPU while decoding, few enough to fill often when time is limited."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: every recipe on the same samples of every task at every length.

    Attributes:
        lengths_tokens: of prompts.
        num_samples: of each task at each length; a file may have fewer.
        shard, num_shards: only every `num_shards`th sample, from `shard` on: for processes side by side.
    """

    rows: Sequence[Row]
    tasks: Sequence[Task | FileTask]
    lengths_tokens: Sequence[int]
    num_samples: int
    seed: int = 0
    shard: int = 0
    num_shards: int = 1

    @property
    def indices(self) -> range:
        """Sample indices of this shard."""
        return range(self.shard, self.num_samples, self.num_shards)

    def key(self, row: Row, task: str, length: int, index: int) -> Key:
        """Names one sample of one cell."""
        return Key(row.name, row.recipe.fingerprint(), task, length, index, self.seed)

    def rng(self, task: str, length: int, index: int) -> random.Random:
        """The same for every recipe, and whatever else is measured beside it."""
        return random.Random(f"{self.seed}/{task}/{length}/{index}")


@dataclass(frozen=True, slots=True)
class Job:
    """One sample to be run under one recipe."""

    key: Key
    row: Row
    sample: Sample


def count_jobs(plan: Plan, done: Collection[Key]) -> int:
    """How many samples are still to be run."""
    return sum(
        plan.key(row, task.name, length, index) not in done
        for index in plan.indices
        for task in plan.tasks
        if _has(task, index)
        for length in plan.lengths_tokens
        for row in plan.rows
    )


def jobs(plan: Plan, prompts: PromptBuilder, done: Collection[Key]) -> Iterator[Job]:
    """Samples that are still to be run, index by index. A prompt is made once for all recipes that read it."""
    for index in plan.indices:
        for task in plan.tasks:
            for length in plan.lengths_tokens if _has(task, index) else ():
                made: dict[bool, Sample] = {}
                for row in plan.rows:
                    key = plan.key(row, task.name, length, index)
                    if key in done:
                        continue
                    thinking = row.recipe.thinking
                    if thinking not in made:
                        made[thinking] = _make(plan, task, prompts.with_thinking(thinking), length, index)
                    yield Job(key, row, made[thinking])


def _has(task: Task | FileTask, index: int) -> bool:
    return isinstance(task, Task) or index < len(task)


def _make(plan: Plan, task: Task | FileTask, prompts: PromptBuilder, length: int, index: int) -> Sample:
    if isinstance(task, Task):
        return task.sample(prompts, length, plan.rng(task.name, length, index))
    return task.sample_at(prompts, length, index)


@dataclass(slots=True)
class _Running:
    job: Job
    text: str = ""
    new_tokens: int = 0


class Evaluation:
    """Runs jobs on one engine. An answer that contains all that is wanted ends: nothing after changes its score."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._running: dict[str, _Running] = {}

    def run(self, todo: Iterable[Job], on_scored: Callable[[Scored], None], stop_s: float | None = None) -> None:
        """Run jobs, handing each outcome over as it comes.

        Args:
            stop_s: start no sample after this time of time.monotonic; those that run are finished.
        """
        source = iter(todo)
        more = True
        while more or self._running:
            while more and len(self._running) < self._engine.config.max_running + FEED_AHEAD:
                job = next(source, None) if stop_s is None or time.monotonic() < stop_s else None
                more = job is not None
                if job is not None:
                    self._add(job)
            if self._running:
                self._handle(self._engine.step(), on_scored)

    def _add(self, job: Job) -> None:
        request_id = "/".join(map(str, (job.key.recipe, job.key.task, job.key.length_tokens, job.key.index)))
        layers = self._engine.runner.shape.num_layers
        sampling = SamplingParams(max_tokens=job.sample.max_new_tokens)
        self._engine.add(new_request(request_id, job.sample.token_ids, job.row.recipe, layers, sampling))
        self._running[request_id] = _Running(job)

    def _handle(self, outputs: Sequence[Output], on_scored: Callable[[Scored], None]) -> None:
        for output in outputs:
            running = self._running.get(output.request_id)
            if running is None:
                continue
            if isinstance(output, TokenOutput):
                running.text += output.text
                running.new_tokens += 1
                if running.job.sample.score(running.text) == 1.0:
                    self._handle(self._engine.cancel(output.request_id), on_scored)
            elif isinstance(output, Finished):
                del self._running[output.request_id]
                sample, text = running.job.sample, running.text + output.text
                on_scored(Scored(running.job.key, sample.score(text), len(sample.token_ids), running.new_tokens, text))


class BatchedEvaluation:
    """Runs jobs in padded batches of one recipe and one length. Ends answers early as `Evaluation` does."""

    def __init__(self, loaded: LoadedModel, generator: BatchGenerator, tokenizer: Any, batch_tokens: int) -> None:
        """`batch_tokens`: prompt tokens of a batch, padding included."""
        self._loaded = loaded
        self._generator = generator
        self._tokenizer = tokenizer
        self._batch_tokens = batch_tokens

    def run(self, todo: Iterable[Job], on_scored: Callable[[Scored], None], stop_s: float | None = None) -> None:
        """See Evaluation.run."""
        waiting: dict[tuple[str, int, bool], list[Job]] = {}
        for job in todo:
            if stop_s is not None and time.monotonic() >= stop_s:
                return
            kind = (job.key.recipe, job.key.length_tokens, _uses_adapter(job))
            group = waiting.setdefault(kind, [])
            group.append(job)
            room = self._batch_tokens - (len(group) + 1) * job.key.length_tokens
            if room < 0 or len(group) >= MAX_BATCH:
                self._run(waiting.pop(kind), on_scored)
        for group in waiting.values():
            if stop_s is None or time.monotonic() < stop_s:
                self._run(group, on_scored)

    def _run(self, group: Sequence[Job], on_scored: Callable[[Scored], None]) -> None:
        adapter = group[0].row.recipe.adapter if _uses_adapter(group[0]) else None
        with self._loaded.adapters.active.during([] if adapter is None else [AdapterRows(adapter, slice(None))]):
            self._answer(group, on_scored)

    def _answer(self, group: Sequence[Job], on_scored: Callable[[Scored], None]) -> None:
        rules = group[0].row.recipe.resolve(self._loaded.shape.num_layers)
        prompts = [job.sample.token_ids for job in group]
        longest = max(job.sample.max_new_tokens for job in group)
        state, token_ids = self._generator.start(prompts, rules, longest)
        answers: list[list[int]] = [[] for _ in group]
        texts = [""] * len(group)
        open_rows = set(range(len(group)))
        while True:
            for at in sorted(open_rows):
                sample = group[at].sample
                answers[at].append(token_ids[at])
                texts[at] = self._tokenizer.decode(answers[at], skip_special_tokens=True)
                ended = token_ids[at] in self._loaded.eos_token_ids or len(answers[at]) >= sample.max_new_tokens
                if ended or sample.score(texts[at]) == 1.0:
                    open_rows.discard(at)
            if not open_rows:
                break
            token_ids = self._generator.step(state, token_ids)
        for job, answer, text in zip(group, answers, texts, strict=True):
            tokens = len(job.sample.token_ids)
            on_scored(Scored(job.key, job.sample.score(text), tokens, len(answer), text))


def _uses_adapter(job: Job) -> bool:
    """Whether the recipe's adapter applies to the prompt (`visibility.adapter_start`); to all of it, or not at all."""
    turns = [Turn(0, len(job.sample.token_ids))]
    return job.row.recipe.adapter is not None and adapter_start(job.row.recipe.window, turns) is not None


def run_perplexity(
    plan: Plan,
    engine: Engine,
    texts: TextSamples,
    done: Collection[Key],
    on_scored: Callable[[Scored], None],
    stop_s: float | None = None,
) -> None:
    """Nats per token of the last tokens of the same texts, by how much of each comes before; one after another."""
    longest = max(plan.lengths_tokens)
    for index in plan.indices:
        for length in plan.lengths_tokens:
            token_ids = texts.sample(length, longest, plan.rng(PERPLEXITY, 0, index))
            for row in plan.rows:
                key = plan.key(row, PERPLEXITY, length, index)
                if key in done or (stop_s is not None and time.monotonic() >= stop_s):
                    continue
                on_scored(Scored(key, nats_per_token(engine, token_ids, row.recipe), length, 0))
