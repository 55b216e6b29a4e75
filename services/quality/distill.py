"""Training data: practice prompts, answered by the full-attention model itself, through the engine.

Answers that are not right or not finished can be dropped, or replaced by the reference answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from services.quality.batched import BatchGenerator
from services.quality.examples import Example
from services.quality.practice import Practice
from swaa_runtime.engine import Engine
from swaa_runtime.model.loader import LoadedModel
from swaa_runtime.outputs import Finished
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import FinishReason, SamplingParams, new_request

Keep = Literal["all", "finished", "right"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Answered:
    """What the model said to one practice prompt. `token_ids` are the answer's, its end included; `score` is 0..1."""

    practice: Practice
    token_ids: tuple[int, ...]
    score: float
    finished: bool

    def is_kept(self, keep: Keep) -> bool:
        """Whether it is good enough to learn from."""
        return keep == "all" or (self.finished and (keep == "finished" or self.score == 1.0))


def answer_all(
    engine: Engine, tokenizer: Any, practices: Sequence[Practice], recipe: Recipe, progress: Progress
) -> Iterator[Answered]:
    """Greedy answers under a recipe, in the order they finish. `progress` is told how many of how many."""
    by_id = {str(index): practice for index, practice in enumerate(practices)}
    waiting = iter(by_id.items())
    room, done = engine.config.max_running, 0
    num_layers = engine.runner.shape.num_layers

    def submit() -> None:
        for request_id, practice in waiting:
            sampling = SamplingParams(max_tokens=practice.sample.max_new_tokens)
            engine.add(new_request(request_id, practice.sample.token_ids, recipe, num_layers, sampling))
            return

    for _ in range(room):
        submit()
    while engine.has_work:
        for output in engine.step():
            if not isinstance(output, Finished):
                continue
            practice = by_id[output.request_id]
            answer = tuple(output.token_ids[len(practice.sample.token_ids) :])
            text = tokenizer.decode(answer, skip_special_tokens=True)
            yield Answered(practice, answer, practice.sample.score(text), output.reason is FinishReason.STOP)
            done += 1
            progress(done, len(practices))
            submit()


def answer_batched(
    loaded: LoadedModel,
    generator: BatchGenerator,
    tokenizer: Any,
    practices: Sequence[Practice],
    recipe: Recipe,
    batch_tokens: int,
    progress: Progress,
) -> Iterator[Answered]:
    """As `answer_all`, in padded batches of prompts of about one length: faster on a GPU, same answers."""
    rules = recipe.resolve(loaded.shape.num_layers)
    longest_first = sorted(practices, key=lambda practice: -len(practice.sample.token_ids))
    at = 0
    while at < len(longest_first):
        size = max(1, batch_tokens // len(longest_first[at].sample.token_ids))
        group = longest_first[at : at + size]
        limits = [practice.sample.max_new_tokens for practice in group]
        state, token_ids = generator.start([practice.sample.token_ids for practice in group], rules, max(limits))
        answers = [[token_id] for token_id in token_ids]

        def ended(answer: list[int], limit: int) -> bool:
            return answer[-1] in loaded.eos_token_ids or len(answer) >= limit

        while not all(map(ended, answers, limits)):
            token_ids = generator.step(state, token_ids)
            for answer, limit, token_id in zip(answers, limits, token_ids, strict=True):
                if not ended(answer, limit):
                    answer.append(token_id)
        for practice, answer in zip(group, answers, strict=True):
            at += 1
            text = tokenizer.decode(answer, skip_special_tokens=True)
            finished = answer[-1] in loaded.eos_token_ids
            yield Answered(practice, tuple(answer), practice.sample.score(text), finished)
            progress(at, len(practices))


def to_example(answered: Answered, keep: Keep, tokenizer: Any, replace_with_reference: bool) -> Example | None:
    """What is to be learnt from an answer; None: nothing.

    Args:
        replace_with_reference: where the answer is not good enough, learn the reference answer instead.
    """
    practice = answered.practice
    if answered.is_kept(keep):
        return _example(practice, answered.token_ids)
    return reference_example(practice, tokenizer) if replace_with_reference else None


def reference_example(practice: Practice, tokenizer: Any) -> Example:
    """A practice prompt with its reference answer and the model's end-of-answer token."""
    ids = tokenizer(practice.reference_answer, add_special_tokens=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return _example(practice, (*ids, *end))


def _example(practice: Practice, answer: Sequence[int]) -> Example:
    prompt = practice.sample.token_ids
    return Example((*prompt, *answer), ((len(prompt), len(prompt) + len(answer)),), practice.task)
