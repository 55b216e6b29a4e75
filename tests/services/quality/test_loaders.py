"""Files of published benchmarks, by small ones of our own in their formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.quality.loaders import CUT, InvalidFile, load_longbench, load_longmemeval, load_ruler
from services.quality.tasks.registry import find_task
from services.quality.tasks.sample import PromptBuilder
from tests.services.quality.builders import RecordingTokenizer

RULER = {
    "index": 0,
    "input": "The code is 7. What is the code?",
    "outputs": ["7"],
    "length": 12,
    "answer_prefix": " It is",
}
LONGBENCH = {
    "_id": "1",
    "domain": "Single-Document QA",
    "difficulty": "easy",
    "length": "short",
    "question": "Who came?",
    "choice_A": "a cat",
    "choice_B": "a dog",
    "choice_C": "a cow",
    "choice_D": "a hen",
    "answer": "B",
    "context": "One morning a dog came. " * 50,
}
LONGMEMEVAL = {
    "question_id": "q1",
    "question_type": "single-session-user",
    "question": "What did I buy?",
    "answer": "a lamp",
    "question_date": "2023/05/30 (Tue) 23:40",
    "haystack_session_ids": ["s1", "s2"],
    "haystack_dates": ["2023/05/20 (Sat) 02:21", "2023/05/21 (Sun) 10:02"],
    "haystack_sessions": [
        [
            {"role": "user", "content": "I bought a lamp.", "has_answer": True},
            {"role": "assistant", "content": "Nice."},
        ],
        [{"role": "user", "content": "It rains."}],
    ],
    "answer_session_ids": ["s1"],
}


def write(folder: Path, items: list[Any], lines: bool = False) -> Path:
    path = folder / "data.json"
    text = "".join(json.dumps(item) + "\n" for item in items) if lines else json.dumps(items)
    path.write_text(text, encoding="utf-8")
    return path


def text_of(task: Any, num_tokens: int, index: int = 0) -> str:
    tokenizer = RecordingTokenizer()
    sample = task.sample_at(PromptBuilder(tokenizer), num_tokens, index)
    assert len(sample.token_ids) <= num_tokens
    return tokenizer.text


def test_ruler(tmp_path: Path) -> None:
    task = load_ruler(write(tmp_path, [RULER, RULER], lines=True))
    assert (len(task), task.name) == (2, "ruler:data.json")
    assert text_of(task, 200) == "The code is 7. What is the code? It is"
    assert task.entries[0].references == ("7",)


def test_longbench_is_cut_in_the_middle(tmp_path: Path) -> None:
    task = load_longbench(write(tmp_path, [LONGBENCH]))
    whole, cut = text_of(task, 2000), text_of(task, 500)
    assert CUT not in whole
    assert CUT in cut
    assert "(B) a dog" in cut
    assert task.entries[0].references == ("(B)",)


def test_longmemeval(tmp_path: Path) -> None:
    task = load_longmemeval(write(tmp_path, [LONGMEMEVAL]))
    text = text_of(task, 1000)
    assert (
        text.index("2023/05/20")
        < text.index("I bought a lamp.")
        < text.index("2023/05/21")
        < text.index("What did I buy?")
    )
    assert task.entries[0].references == ("a lamp",)


@pytest.mark.parametrize("kind", ["ruler", "longbench", "longmemeval"])
def test_tasks_name_their_file(tmp_path: Path, kind: str) -> None:
    item = {"ruler": RULER, "longbench": LONGBENCH, "longmemeval": LONGMEMEVAL}[kind]
    assert find_task(f"{kind}:{write(tmp_path, [item])}").name == f"{kind}:data.json"


@pytest.mark.parametrize(
    ("load", "item", "changes", "message"),
    [
        (load_ruler, RULER, {"outputs": []}, "entry 0: field 'outputs'"),
        (load_ruler, RULER, {"input": None}, "field 'input' is absent"),
        (load_longbench, LONGBENCH, {"answer": "E"}, "must be one of A, B, C, D"),
        (load_longbench, LONGBENCH, {"choice_C": 3}, "field 'choice_C' is 3"),
        (load_longmemeval, LONGMEMEVAL, {"haystack_dates": []}, "lists of one length"),
        (load_longmemeval, LONGMEMEVAL, {"haystack_sessions": [[{"role": "user"}], []]}, "field 'content' is absent"),
        (load_longmemeval, LONGMEMEVAL, {"answer": None}, "field 'answer'"),
    ],
)
def test_errors_name_entry_and_field(tmp_path: Path, load: Any, item: Any, changes: Any, message: str) -> None:
    with pytest.raises(InvalidFile, match=message):
        load(write(tmp_path, [item | changes]))


@pytest.mark.parametrize("text", ["", "[]", "nonsense", '["text"]'])
def test_what_is_no_list_of_objects_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidFile, match=r"bad\.json"):
        load_ruler(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match=r"gone\.json"):
        load_longbench(tmp_path / "gone.json")


def test_a_question_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="question alone"):
        text_of(load_longbench(write(tmp_path, [LONGBENCH])), 60)
