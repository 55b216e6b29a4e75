"""Practice prompts: repeatable, of the asked length, answered by their reference, and not evaluation's."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from services.quality import practice_words
from services.quality.distill import reference_example
from services.quality.finetune import PracticePlan, make_practices
from services.quality.practice import PRACTICE_TASKS, make_practice
from services.quality.tasks import common_words, filler, needles
from services.quality.tasks.sample import PromptBuilder


@pytest.fixture(scope="module")
def prompts(default_model_folder: Path) -> PromptBuilder:
    return PromptBuilder(AutoTokenizer.from_pretrained(default_model_folder))


@pytest.mark.model
@pytest.mark.parametrize("task", PRACTICE_TASKS)
def test_a_prompt_is_as_long_as_asked_and_its_reference_answer_right(prompts: PromptBuilder, task: str) -> None:
    for index in range(3):
        practice = make_practice(prompts, task, 600, 0, index)
        assert practice == make_practice(prompts, task, 600, 0, index)
        assert 400 < len(practice.sample.token_ids) <= 600
        assert practice.sample.score(practice.reference_answer) == 1.0
        assert practice.sample.score("") == 0.0
        text = prompts.tokenizer.decode(practice.sample.token_ids)
        assert all(reference in text for reference in practice.sample.references)
    assert make_practice(prompts, task, 600, 1, 0) != make_practice(prompts, task, 600, 0, 0)


@pytest.mark.model
def test_a_reference_example_learns_the_answer_and_its_end(prompts: PromptBuilder) -> None:
    practice = make_practice(prompts, "single", 300, 0, 0)
    example = reference_example(practice, prompts.tokenizer)
    ((start, stop),) = example.answer_spans
    assert example.token_ids[:start] == practice.sample.token_ids
    assert example.token_ids[stop - 1] == prompts.tokenizer.eos_token_id
    assert prompts.tokenizer.decode(example.token_ids[start : stop - 1]) == practice.reference_answer


@pytest.mark.model
def test_a_plan_goes_around_its_cells_and_processes_do_not_matter(prompts: PromptBuilder) -> None:
    plan = PracticePlan(("single", "records"), (200, 300), 6, 0)
    cells = [("single", 200), ("records", 200), ("single", 300), ("records", 300)]
    assert plan.items() == [(*cell, 0) for cell in cells] + [(*cell, 1) for cell in cells[:2]]
    assert make_practices(plan, prompts.tokenizer, 2) == make_practices(plan, prompts.tokenizer)


def test_no_list_shares_words_with_evaluations() -> None:
    theirs = {*common_words.WORDS, *needles.TOPICS, *filler.WHO, *filler.DID, *filler.WHERE, *filler.WHEN, *filler.THEN}
    lists = {name: value for name, value in vars(practice_words).items() if name.isupper()}
    assert len(lists) == 10
    for words in lists.values():
        assert len(set(words)) == len(words)
        assert not theirs & set(words)
    assert random.Random("practice/0").random() != random.Random("0").random()
