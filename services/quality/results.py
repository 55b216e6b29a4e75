"""Results on disk: JSON lines that are only ever appended to, one per sample, so that a run that was cut off goes on.

A folder holds any number of such files; processes side by side each write their own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

SUFFIX = ".jsonl"
PERPLEXITY = "perplexity"
"""The task whose scores are nats per token."""


@dataclass(frozen=True, slots=True)
class Key:
    """Which sample of which cell. `recipe_fingerprint` tells two recipes of one name apart."""

    recipe: str
    recipe_fingerprint: str
    task: str
    length_tokens: int
    index: int
    seed: int


@dataclass(frozen=True, slots=True)
class Scored:
    """One sample's outcome: `score` in 0..1, or for perplexity tasks nats per token."""

    key: Key
    score: float
    prompt_tokens: int
    new_tokens: int
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Timed:
    """One prefill on an engine that does nothing else: milliseconds to the first token, bytes of KV.

    `peak_kv_bytes` is the most that was held, `kv_bytes` what is held while the answer is generated.
    """

    recipe: str
    recipe_fingerprint: str
    length_tokens: int
    repeat: int
    ttft_ms: float
    peak_kv_bytes: int
    kv_bytes: int
    hardware: str


@dataclass(frozen=True, slots=True)
class Setting:
    """What a run measured with; written once at the head of each file."""

    model: str
    model_fingerprint: str
    hardware: str
    date: str
    command: str
    versions: dict[str, str]
    recipes: dict[str, dict[str, Any]]


Record = Scored | Timed | Setting
_KINDS: dict[str, type[Record]] = {"scored": Scored, "timed": Timed, "setting": Setting}


class DamagedResults(ValueError):
    """A line of a results file that is not the last one cannot be read."""


class ResultsFile:
    """Appends records. A line that a killed run left unfinished is cut off first."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def append(self, record: Record) -> None:
        """Write one record and hand it to the system."""
        kind = next(name for name, cls in _KINDS.items() if isinstance(record, cls))
        self._file.write(json.dumps({"kind": kind, **asdict(record)}, separators=(",", ":")) + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


def read_records(folder: Path) -> Iterator[Record]:
    """All records of a folder, file by file.

    Raises:
        DamagedResults: naming file and line.
    """
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        lines = path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is torn, or nothing
            yield _record(path, number, line)


def _record(path: Path, number: int, line: str) -> Record:
    try:
        data = json.loads(line)
        cls = _KINDS[data.pop("kind")]
        if cls is Scored:
            data["key"] = Key(**data["key"])
        return cls(**data)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise DamagedResults(f"{path.name}, line {number}: {exc}") from None


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
