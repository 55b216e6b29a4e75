"""Results on disk: appended, read back, and whole again after a crash."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.quality.results import DamagedResults, Record, ResultsFile, read_records
from tests.services.quality.builders import scored, setting, timed

RECORDS: list[Record] = [setting(), scored("full", "single", 100, 0, 0.5), timed("slides", 100, 3.5)]


def write(folder: Path, name: str = "samples") -> Path:
    path = folder / f"{name}.jsonl"
    with ResultsFile(path) as file:
        for record in RECORDS:
            file.append(record)
    return path


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    write(tmp_path, "a")
    write(tmp_path, "b")
    assert list(read_records(tmp_path)) == RECORDS * 2


def test_a_torn_line_is_ignored_and_cut_off_on_the_next_write(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    assert list(read_records(tmp_path)) == RECORDS[:-1]
    with ResultsFile(path) as file:
        file.append(RECORDS[-1])
    assert list(read_records(tmp_path)) == RECORDS


@pytest.mark.parametrize("line", ["{", "[]", '{"kind": "else"}', '{"kind": "timed", "ttft": 1}'])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = write(tmp_path)
    path.write_text(line + "\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(DamagedResults, match="line 1"):
        list(read_records(tmp_path))
