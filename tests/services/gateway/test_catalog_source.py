"""A catalogue that changes while the service runs: good ones are taken over, bad ones are not."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from services.gateway.catalog_file import ServedModel
from services.gateway.catalog_source import CatalogSource
from swaa_runtime.errors import InvalidRequest

from .test_catalog_file import TINY

MODEL = ServedModel(4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "catalog.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path


def write(path: Path, text: str) -> None:
    """As editors do: a new file in its place, so that its identity changes however coarse the clock is."""
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def refreshed(source: CatalogSource) -> CatalogSource:
    asyncio.run(source.refresh())
    return source


def test_a_changed_file_is_read_again_and_who_has_the_old_catalogue_keeps_it(path: Path) -> None:
    source = CatalogSource(path, MODEL)
    old = source.current
    write(path, TINY.replace("ttft_ms: 1000", "ttft_ms: 2000"))
    assert refreshed(source).current.sla_classes["balanced"].ttft_ms == 2000
    assert old.sla_classes["balanced"].ttft_ms == 1000


def test_an_unchanged_file_is_not_read_again(path: Path) -> None:
    source = CatalogSource(path, MODEL)
    current = source.current
    assert refreshed(source).current is current


def test_a_bad_file_changes_nothing_is_logged_once_and_shows_until_it_is_good_again(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = CatalogSource(path, MODEL)
    current = source.current
    write(path, TINY.replace("priority: 10", "priority: high"))
    for _ in range(3):
        assert refreshed(source).current is current
    assert "sla_classes.0.priority is 'high'" in source.error
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    write(path, TINY.replace("priority: 10", "priority: 11"))
    assert refreshed(source).error == ""
    assert source.current.sla_classes["balanced"].priority == 11


def test_a_file_that_goes_away_changes_nothing_and_is_taken_when_it_comes_back(path: Path) -> None:
    source = CatalogSource(path, MODEL)
    path.unlink()
    assert "No such file" in refreshed(source).error
    assert "sliding" in source.current.recipes
    write(path, TINY)
    assert refreshed(source).error == ""


def test_a_table_that_comes_after_the_catalogue_that_names_it_is_found(path: Path) -> None:
    source = CatalogSource(path, MODEL)
    inline = TINY.index("\nquality:") + 1
    write(path, TINY[:inline] + "quality_table: table.json\n")
    assert "table.json" in refreshed(source).error
    (path.parent / "table.json").write_text(
        '{"task": "t", "measured": {"samples": 1, "hardware": "h", "date": "d"}, "lengths_tokens": [10], "recipes": {'
        '"full": {"recipe": {}, "recall": [1]}, '
        '"sliding": {"recipe": {"window": 64, "sink_tokens": 4}, "recall": [0.3]}}}',
        encoding="utf-8",
    )
    assert refreshed(source).error == ""
    assert source.current.quality.recall["sliding"] == (0.3,)


def test_a_service_does_not_start_with_a_bad_catalogue(path: Path) -> None:
    write(path, "recipes: []")
    with pytest.raises(InvalidRequest):
        CatalogSource(path, MODEL)


def test_the_watcher_takes_changes_over_by_itself(path: Path) -> None:
    async def watch() -> None:
        source = CatalogSource(path, MODEL)
        watching = asyncio.create_task(source.watch(interval_s=0.001))
        write(path, TINY.replace("ttft_ms: 1000", "ttft_ms: 3000"))
        async with asyncio.timeout(120):
            while source.current.sla_classes["balanced"].ttft_ms != 3000:  # noqa: ASYNC110 - files have no events
                await asyncio.sleep(0.001)
        watching.cancel()

    asyncio.run(watch())
