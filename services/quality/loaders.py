"""Samples from files of published benchmarks, given as local paths; nothing is downloaded.

RULER: the JSON lines that its `prepare.py` writes (`input`, `outputs`, optionally `answer_prefix`). LongBench v2:
`data.json` (`question`, `choice_A` to `choice_D`, `answer`, `context`). LongMemEval: `longmemeval_*.json` (`question`,
`answer`, `haystack_sessions`, `haystack_dates`). A context that is too long is cut in the middle, as LongBench does.

LongMemEval is judged by a language model in its paper; here by whether the answer appears in the output, which is
stricter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.quality.tasks.sample import FileTask, Match, PromptBuilder, Sample

CHOICES = ("A", "B", "C", "D")
CUT = "\n[...]\n"
RULER_NEW_TOKENS, LONGBENCH_NEW_TOKENS, LONGMEMEVAL_NEW_TOKENS = 128, 16, 64
MIN_CONTEXT_TOKENS = 16


class InvalidFile(ValueError):
    """A file is not what it is said to be; the message names file, entry and field."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One question of a file. `before` and `after` are never cut; `context` may be."""

    before: str
    context: str
    after: str
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FileSamples:
    """The questions of one file as a task."""

    name: str
    entries: tuple[Entry, ...]
    max_new_tokens: int
    match: Match = "all"

    def __len__(self) -> int:
        return len(self.entries)

    def sample_at(self, prompts: PromptBuilder, num_tokens: int, index: int) -> Sample:
        """See FileTask.sample_at. Raises InvalidFile if question and answer alone take more than `num_tokens`."""
        entry = self.entries[index]
        context = entry.context
        fixed = len(prompts.ids(entry.before + CUT + entry.after))
        room = num_tokens - fixed
        if room < MIN_CONTEXT_TOKENS:
            raise InvalidFile(f"{self.name}, entry {index}: its question alone takes {fixed} tokens of {num_tokens}")
        while len(prompts.ids(entry.before + context + entry.after)) > num_tokens:
            context = _cut_middle(prompts, entry.context, room)
            room -= max(1, room // 100)
        ids = prompts.ids(entry.before + context + entry.after)
        return Sample(ids, entry.references, self.max_new_tokens, self.match)


def _cut_middle(prompts: PromptBuilder, text: str, num_tokens: int) -> str:
    ids = prompts.tokenizer(text, add_special_tokens=False)["input_ids"]
    half = num_tokens // 2
    start, end = prompts.tokenizer.decode(ids[:half]), prompts.tokenizer.decode(ids[len(ids) - half :])
    return f"{start}{CUT}{end}"


def load_ruler(path: Path) -> FileSamples:
    """A RULER task file. The answer's prefix, if the file has one, ends the prompt's text.

    Raises:
        InvalidFile: as all loaders do, for a file that is missing, unreadable or of another form.
    """
    entries = []
    for where, item in _items(path):
        text = _text(where, item, "input")
        prefix = _text(where, item, "answer_prefix") if "answer_prefix" in item else ""
        entries.append(Entry("", text + prefix, "", _texts(where, item, "outputs")))
    return FileSamples(f"ruler:{path.name}", tuple(entries), RULER_NEW_TOKENS)


def load_longbench(path: Path) -> FileSamples:
    """LongBench v2: four choices, one letter is right."""
    entries = []
    for where, item in _items(path):
        answer = _text(where, item, "answer")
        if answer not in CHOICES:
            raise InvalidFile(f"{where}: field 'answer' is {answer!r}, must be one of {', '.join(CHOICES)}")
        choices = "\n".join(f"({letter}) {_text(where, item, f'choice_{letter}')}" for letter in CHOICES)
        after = (
            f"\n\nQuestion: {_text(where, item, 'question')}\n{choices}\n\n"
            'Which choice is right? Answer in this form: "The correct answer is (A)".'
        )
        entries.append(Entry("Read this text.\n\n", _text(where, item, "context"), after, (f"({answer})",)))
    return FileSamples(f"longbench:{path.name}", tuple(entries), LONGBENCH_NEW_TOKENS)


def load_longmemeval(path: Path) -> FileSamples:
    """LongMemEval: a history of dated conversations, and a question about it."""
    entries = []
    for where, item in _items(path):
        dates, sessions = item.get("haystack_dates"), item.get("haystack_sessions")
        if not isinstance(dates, list) or not isinstance(sessions, list) or len(dates) != len(sessions):
            raise InvalidFile(f"{where}: 'haystack_dates' and 'haystack_sessions' must be lists of one length")
        history = [_session(where, str(date), turns) for date, turns in zip(dates, sessions, strict=True)]
        asked = f"\n\nToday is {item.get('question_date', 'unknown')}. {_text(where, item, 'question')}"
        answer = item.get("answer")
        if not isinstance(answer, str | int | float) or not str(answer):
            raise InvalidFile(f"{where}: field 'answer' is {answer!r}, must be a text or a number")
        before = "These are our conversations so far.\n\n"
        entries.append(Entry(before, "\n\n".join(history), asked, (str(answer),)))
    return FileSamples(f"longmemeval:{path.name}", tuple(entries), LONGMEMEVAL_NEW_TOKENS)


LOADERS: Mapping[str, Callable[[Path], FileTask]] = {
    "ruler": load_ruler,
    "longbench": load_longbench,
    "longmemeval": load_longmemeval,
}


def _session(where: str, date: str, turns: Any) -> str:
    if not isinstance(turns, list):
        raise InvalidFile(f"{where}: a session of 'haystack_sessions' must be a list of turns")
    lines = [f"Conversation of {date}"]
    for turn in turns:
        if not isinstance(turn, dict):
            raise InvalidFile(f"{where}: a turn must have 'role' and 'content'")
        lines.append(f"{_text(where, turn, 'role')}: {_text(where, turn, 'content')}")
    return "\n".join(lines)


def _items(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a JSON list or of JSON lines, each with where it stands."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidFile(f"{path.name}: cannot be read as text: {exc}") from None
    try:
        items = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in _lines(text)]
    except json.JSONDecodeError as exc:
        raise InvalidFile(f"{path.name}: is neither a JSON list nor JSON lines: {exc}") from None
    if not items:
        raise InvalidFile(f"{path.name}: has no entries")
    out = []
    for at, item in enumerate(items):
        where = f"{path.name}, entry {at}"
        if not isinstance(item, dict):
            raise InvalidFile(f"{where}: must be an object")
        out.append((where, item))
    return out


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _text(where: str, item: Mapping[str, Any], field: str) -> str:
    value = item.get(field)
    if not isinstance(value, str):
        raise InvalidFile(f"{where}: field {field!r} is {_seen(value)}, must be a text")
    return value


def _texts(where: str, item: Mapping[str, Any], field: str) -> tuple[str, ...]:
    value = item.get(field)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text for text in value):
        raise InvalidFile(f"{where}: field {field!r} is {_seen(value)}, must be a list of texts")
    return tuple(value)


def _seen(value: Any) -> str:
    return "absent" if value is None else repr(value)[:80]
