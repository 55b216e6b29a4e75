"""Files that change under a service: what is good is taken over, what is bad is told once and changes nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from services.reloaded import Reloaded
from swaa_runtime.errors import InvalidRequest
from tests.services.tiny_service import until


def write(path: Path, text: str) -> None:
    """As editors do: a new file in its place, so that its identity changes however coarse the clock is."""
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "number", "1")
    return tmp_path / "number"


def number_in(path: Path) -> int:
    """What a file says. Negative numbers are bad; on what is no number it fails as a bug would."""
    number = int(path.read_text(encoding="utf-8"))
    if number < 0:
        raise InvalidRequest("number", number, "must not be negative")
    return number


def source_of(path: Path, read: Callable[[Path], int] = number_in) -> Reloaded[int]:
    return Reloaded("number", [path], lambda: (read(path), [path]))


def refreshed(source: Reloaded[int]) -> int:
    asyncio.run(source.refresh())
    return source.current


def test_changed_files_are_read_again_and_unchanged_ones_are_not(path: Path) -> None:
    reads = list[Path]()
    source = source_of(path, lambda path: reads.append(path) or number_in(path))  # type: ignore[func-returns-value]
    assert (refreshed(source), len(reads)) == (1, 1)
    write(path, "2")
    assert (refreshed(source), len(reads)) == (2, 2)
    assert (refreshed(source), len(reads)) == (2, 2)


def test_bad_files_change_nothing_and_are_told_once_each(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = source_of(path)
    loaded_at_s = source.loaded_at_s
    for bad in ("-1", "-1"):
        write(path, bad)
        for _ in range(3):
            assert refreshed(source) == 1
    assert source.error == "number is -1: must not be negative"
    assert (source.num_failures, source.loaded_at_s) == (2, loaded_at_s)
    assert caplog.messages == ["the new number is not used, the old one stays: number is -1: must not be negative"] * 2
    write(path, "1")
    assert (refreshed(source), source.error, source.num_failures) == (1, "", 2)
    assert source.loaded_at_s > loaded_at_s


def test_what_was_bad_is_read_again_though_no_file_has_changed(path: Path) -> None:
    early = iter([False, True, False])

    def read(path: Path) -> int:
        if next(early):
            raise InvalidRequest("number", 2, "comes too early")
        return number_in(path)

    source = source_of(path, read)
    write(path, "2")
    assert refreshed(source) == 1
    assert (refreshed(source), source.error) == (2, "")


def test_a_bug_of_the_reader_ends_no_watch_and_is_told_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        source = source_of(path)
        watching = asyncio.create_task(source.watch(interval_s=0.001))
        write(path, "not a number")
        await until(lambda: source.error == "unexpected ValueError")
        await asyncio.sleep(0.05)
        assert (source.current, source.num_failures) == (1, 1)
        write(path, "2")
        await until(lambda: source.current == 2)
        watching.cancel()

    asyncio.run(run())
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert record.exc_info is not None, "with its traceback"


def test_a_link_that_is_turned_to_another_file_is_a_change(tmp_path: Path) -> None:
    for name, number in (("one", "1"), ("two", "2")):
        write(tmp_path / name, number)
    link = tmp_path / "link"
    link.symlink_to("one")
    source = source_of(link)
    (tmp_path / "new").symlink_to("two")
    os.replace(tmp_path / "new", link)
    assert refreshed(source) == 2


def test_files_that_are_known_only_once_they_are_read_are_watched_too(tmp_path: Path) -> None:
    path, named = tmp_path / "path", tmp_path / "named"
    write(path, "named")
    write(named, "1")

    def read() -> tuple[int, list[Path]]:
        other = tmp_path / path.read_text(encoding="utf-8")
        return number_in(other), [path, other]

    source = Reloaded("number", [path], read)
    write(named, "2")
    assert refreshed(source) == 2
    write(tmp_path / "other", "3")
    write(path, "other")
    assert refreshed(source) == 3
    write(tmp_path / "other", "4")
    assert refreshed(source) == 4


def test_a_service_does_not_start_with_bad_files(path: Path) -> None:
    write(path, "-1")
    with pytest.raises(InvalidRequest):
        source_of(path)
