"""Tasks: prompts of the right length that contain what is asked for, where it is said to be."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.quality.tasks.common_words import CommonWords
from services.quality.tasks.filler import MAX_DEPTH, bury
from services.quality.tasks.needles import Needles
from services.quality.tasks.passages import log_entries, questions
from services.quality.tasks.registry import DEFAULT_TASKS, UnknownTask, find_task
from services.quality.tasks.sample import ContextTooShort, PromptBuilder, Sample, Task
from tests.services.quality.builders import RecordingTokenizer, prompts

LENGTH = 4000


def text_of(name: str, seed: int = 0, num_tokens: int = LENGTH) -> tuple[Sample, str]:
    tokenizer = RecordingTokenizer()
    task = find_task(name)
    assert isinstance(task, Task)
    sample = task.sample(PromptBuilder(tokenizer), num_tokens, random.Random(seed))
    return sample, tokenizer.text


@pytest.mark.parametrize("name", [*DEFAULT_TASKS, "single@start", "multi_value@both"])
@pytest.mark.parametrize("seed", range(3))
def test_prompt_has_the_length_and_the_answer(name: str, seed: int) -> None:
    sample, text = text_of(name, seed)
    assert 0.8 * LENGTH < len(sample.token_ids) <= LENGTH
    found = [reference.lower() in text.lower() for reference in sample.references]
    assert any(found) if sample.match == "any" else all(found)


@pytest.mark.parametrize("name", DEFAULT_TASKS)
def test_same_seed_same_sample(name: str) -> None:
    assert text_of(name, 1) == text_of(name, 1)
    assert text_of(name, 1)[1] != text_of(name, 2)[1]


@pytest.mark.parametrize(("name", "count"), [("single", 1), ("multi_query", 2), ("multi_value", 2)])
def test_number_of_references(name: str, count: int) -> None:
    assert len(text_of(name)[0].references) == count


def test_multi_key_hides_other_keys() -> None:
    sample, text = text_of("multi_key")
    assert len(sample.references) == 1
    assert len(re.findall(r"magic number for \w+ is \d{4}\.", text)) > 1


@pytest.mark.parametrize("seed", range(5))
def test_needles_lie_in_the_first_part(seed: int) -> None:
    _, text = text_of("single", seed)
    assert text.index("special magic number") < (MAX_DEPTH + 0.05) * len(text)


def test_the_question_stands_where_it_is_said_to() -> None:
    asked = "What is the special magic number"
    for name, at_start, at_end in (("single", False, True), ("single@start", True, False), ("single@both", True, True)):
        _, text = text_of(name)
        assert (text.startswith(asked), asked in text[-120:]) == (at_start, at_end)


def test_orders_share_nothing_but_the_kind() -> None:
    names = [find_task(name).name for name in ("single", "single@start", "single@both")]
    assert names == ["single", "single@start", "single@both"]


def test_variable_tracking_wants_the_whole_chain() -> None:
    sample, text = text_of("variable_tracking")
    body = text.split("Text: ")[1]
    first, second = sample.references
    value = re.findall(r"value (\d{5})", body)[0]
    assert f"VAR {first} = {value}." in body
    assert f"VAR {second} = VAR {first}." in body
    assert body.index(f"VAR {first} =") < body.index(f"VAR {second} =")


def test_common_words_are_the_most_common() -> None:
    task = CommonWords(num_common=2, num_words=8, common_weight=5)
    tokenizer = RecordingTokenizer()
    sample = task.sample(PromptBuilder(tokenizer), LENGTH, random.Random(3))
    words = re.findall(r"\d+\. (\w+)", tokenizer.text.split("List:\n")[1])
    counts = {word: words.count(word) for word in set(words)}
    top = sorted(counts, key=lambda word: -counts[word])[:2]
    assert set(top) == set(sample.references)
    assert min(counts[word] for word in top) > 2 * max(counts[word] for word in counts if word not in top)


def test_every_question_is_answered_by_its_passage_alone_to_be_found() -> None:
    assert len(questions()) >= 30
    for question in questions():
        assert question.passage in log_entries().values()
        assert any(answer.lower() in question.passage.lower() for answer in question.answers)
        assert not any(answer.lower() in question.text.lower() for answer in question.answers)


def test_thinking_adds_a_sentence_and_room_for_it() -> None:
    task, rng = Needles("single"), random.Random
    plain = task.sample(prompts(), LENGTH, rng(0))
    thinking = task.sample(prompts().with_thinking(True), LENGTH, rng(0))
    assert thinking.max_new_tokens > plain.max_new_tokens
    assert thinking.references == plain.references
    assert len(thinking.token_ids) <= LENGTH


@pytest.mark.parametrize("name", DEFAULT_TASKS)
def test_too_short_is_said(name: str) -> None:
    with pytest.raises(ContextTooShort, match="too few"):
        text_of(name, num_tokens=20)


@pytest.mark.parametrize("name", ["double", "single@middle", "squad:x.json", ""])
def test_unknown_names_are_errors(name: str) -> None:
    with pytest.raises(UnknownTask):
        find_task(name)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4), st.text(), st.text())
def test_score_never_falls_as_the_answer_grows(references: list[str], answer: str, more: str) -> None:
    for match in ("all", "any"):
        sample = Sample((1,), tuple(references), 5, match)
        assert 0.0 <= sample.score(answer) <= sample.score(answer + more) <= 1.0


def test_score_is_the_share_of_references() -> None:
    assert Sample((1,), ("Abc", "12"), 5).score("it is abc") == 0.5
    assert Sample((1,), ("Abc", "12"), 5, "any").score("it is abc") == 1.0


@given(st.integers(0, 40), st.integers(0, 6), st.randoms(use_true_random=False))
def test_bury_keeps_the_order_of_both(num_filler: int, num_needles: int, rng: random.Random) -> None:
    filler = [f"f{at}" for at in range(num_filler)]
    needles = [f"n{at}" for at in range(num_needles)]
    pieces = bury(needles, filler, rng)
    assert [piece for piece in pieces if piece[0] == "n"] == needles
    assert [piece for piece in pieces if piece[0] == "f"] == filler
