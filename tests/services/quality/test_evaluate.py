"""Running samples: all of a plan, once, the same on either runner; perplexity against the oracle."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from services.quality.batched import BatchGenerator, DenseKernel
from services.quality.evaluate import BatchedEvaluation, Evaluation, Plan, count_jobs, jobs
from services.quality.perplexity import TextSamples, nats_per_token
from services.quality.recipes import Row
from services.quality.results import Key, Scored
from services.quality.speed import time_prefills
from services.quality.tasks.needles import Needles
from services.quality.tasks.sample import PromptBuilder, Sample
from swaa_runtime.engine import Engine
from swaa_runtime.model.attention import ATTENTION_NAME
from swaa_runtime.model.loader import wrap_model
from swaa_runtime.request import SamplingParams, new_request
from swaa_runtime.runner import ModelRunner
from tests.services.quality.builders import ROWS, LetterTokenizer, prompts
from tests.swaa_runtime.builders import (
    build_transformer,
    engine_config,
    oracle_logits,
    random_tokens,
    tiny_config,
    tiny_model,
    write_adapter,
)

PLAN = Plan(ROWS, (Needles("single"),), (250, 400), num_samples=3)


def engine() -> Engine:
    config = engine_config(max_running=3, max_step_tokens=128)
    return Engine(ModelRunner(tiny_model(), config), config, LetterTokenizer(), ())


def run_engine(plan: Plan, done: set[Key] | None = None) -> list[Scored]:
    out: list[Scored] = []
    Evaluation(engine()).run(jobs(plan, prompts(), done or set()), out.append)
    return out


def test_every_sample_of_the_plan_is_scored_once() -> None:
    out = run_engine(PLAN)
    counts = Counter((item.key.recipe, item.key.task, item.key.length_tokens, item.key.index) for item in out)
    assert len(counts) == len(out) == count_jobs(PLAN, set()) == 2 * 2 * 3
    assert all(item.new_tokens == 24 for item in out)


def test_what_is_done_is_skipped() -> None:
    done = {item.key for item in run_engine(replace(PLAN, num_samples=1))}
    rest = run_engine(PLAN, done)
    assert {item.key.index for item in rest} == {1, 2}
    assert count_jobs(PLAN, done) == len(rest)


def test_shards_divide_the_samples() -> None:
    shards = [run_engine(replace(PLAN, shard=shard, num_shards=2)) for shard in range(2)]
    keys = [item.key for out in shards for item in out]
    assert sorted(map(str, keys)) == sorted(str(item.key) for item in run_engine(PLAN))


def test_no_sample_starts_after_the_time_is_up() -> None:
    out: list[Scored] = []
    Evaluation(engine()).run(jobs(PLAN, prompts(), set()), out.append, stop_s=0.0)
    assert out == []


def test_both_runners_give_the_same_answers() -> None:
    loaded, out = tiny_model(), list[Scored]()
    runner = BatchedEvaluation(loaded, BatchGenerator(loaded, DenseKernel()), LetterTokenizer(), 1000)
    runner.run(jobs(PLAN, prompts(), set()), out.append)
    assert sorted(out, key=str) == sorted(run_engine(PLAN), key=str)


def test_an_adapter_is_used_by_either_runner_where_the_prompt_exceeds_the_window(tmp_path: Path) -> None:
    loaded = wrap_model(
        build_transformer(tiny_config("llama"), ATTENTION_NAME), "m", {"a": write_adapter(tmp_path / "a", 1)}
    )
    slides = ROWS[1].recipe
    tuned = loaded.adapters.pin(replace(slides, adapter="a"))
    wide = loaded.adapters.pin(replace(slides, window=500, adapter="a"))
    plan = replace(PLAN, rows=(ROWS[1], Row("tuned", tuned), Row("wide", wide)))
    by_engine, by_batch = list[Scored](), list[Scored]()
    config = engine_config(max_running=3, max_step_tokens=128)
    Evaluation(Engine(ModelRunner(loaded, config), config, LetterTokenizer(), ())).run(
        jobs(plan, prompts(), set()), by_engine.append
    )
    runner = BatchedEvaluation(loaded, BatchGenerator(loaded, DenseKernel()), LetterTokenizer(), 1000)
    runner.run(jobs(plan, prompts(), set()), by_batch.append)
    assert sorted(by_engine, key=str) == sorted(by_batch, key=str)
    answers = {name: [out.answer for out in by_engine if out.key.recipe == name] for name in ("slides", "tuned")}
    assert answers["slides"] != answers["tuned"]


class SingleLetter:
    """Asks for whatever the model says second, so that its answers end early."""

    name = "letter"

    def __init__(self, letter: str) -> None:
        self._letter = letter

    def sample(self, prompts: PromptBuilder, num_tokens: int, rng: random.Random) -> Sample:
        ids = tuple(rng.randrange(64) for _ in range(num_tokens))
        return Sample(ids, (self._letter,), 12)


def test_an_answer_ends_once_it_has_all_that_is_wanted() -> None:
    plan = Plan(ROWS[:1], (SingleLetter("\n"),), (40,), num_samples=1)
    whole = run_engine(plan)[0]
    assert whole.new_tokens == 12
    early = run_engine(replace(plan, tasks=(SingleLetter(whole.answer[3]),)))[0]
    assert early.score == 1.0
    assert early.answer == whole.answer[: whole.answer.index(whole.answer[3]) + 1]


def test_perplexity_is_what_the_oracle_says() -> None:
    token_ids, recipe = random_tokens(60), ROWS[1].recipe
    nats = nats_per_token(engine(), token_ids, recipe, num_scored=20)
    request = new_request("r", token_ids[:40], recipe, 3, SamplingParams(max_tokens=20), sent_token_ids=token_ids[40:])
    logprobs = oracle_logits(tiny_model(), request).log_softmax(-1)
    want = -logprobs[39:59].gather(1, torch.tensor(token_ids[40:])[:, None]).mean()
    assert abs(nats - float(want)) < 1e-5


def test_texts_end_at_the_same_token_at_every_length() -> None:
    texts = TextSamples(range(1000))
    short, long = (texts.sample(length, 400, random.Random(5)) for length in (50, 400))
    assert long[-50:] == short
    assert len(long) == 400


def test_timings_tell_what_is_held() -> None:
    out: list[object] = []
    time_prefills(engine(), ROWS, random_tokens(300), (100, 300), 2, "here", out.append)
    assert len(out) == 2 * 2 * 2
    timings = [item for item in out if getattr(item, "length_tokens", 0) == 300]
    assert all(getattr(item, "ttft_ms", 0.0) > 0.0 and getattr(item, "kv_bytes", 0) > 0 for item in timings)
