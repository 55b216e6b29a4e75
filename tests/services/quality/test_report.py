"""From results to tables and plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.quality.command import main
from services.quality.plots import pareto_front, plot_pareto
from services.quality.report import MixedResults, Results, markdown, quality_table, tasks_of_mean
from services.quality.results import PERPLEXITY, Record, ResultsFile
from tests.services.quality.builders import scored, setting, timed


def records() -> list[Record]:
    out: list[Record] = [setting()]
    for length in (100, 200):
        for index in range(4):
            for task in ("single", "multi_value"):
                out.append(scored("full", task, length, index, 1.0))
                out.append(scored("slides", task, length, index, float(index > 0 or task == "multi_value")))
            out.append(scored("full", "single@both", length, index, 0.0))
            out.append(scored("full", PERPLEXITY, length, index, 2.5))
        out += [timed("full", length, 80.0), timed("full", length, 60.0), timed("slides", length, 10.0)]
    return out


def table_of(items: list[Record]) -> dict[str, Any]:
    results = Results.collect(items)
    return quality_table(results, tasks_of_mean(results))


def test_table_has_means_intervals_and_differences() -> None:
    table = table_of(records())
    assert table["lengths_tokens"] == [100, 200]
    assert table["tasks"] == ["single", "multi_value"]
    entry = table["recipes"]["slides"]
    assert entry["recall"] == [0.875, 0.875]
    assert entry["samples"] == [8, 8]
    assert entry["tasks"]["single"]["recall"] == [0.75, 0.75]
    assert entry["difference_from_full"]["overall"]["mean"] == -0.125
    assert (entry["ttft_ms"], entry["kv_bytes"]) == ([10.0, 10.0], [2 << 20, 2 << 20])
    full = table["recipes"]["full"]
    assert full["nats_per_token"] == [2.5, 2.5]
    assert full["tasks"]["single@both"]["recall"] == [0.0, 0.0]


def test_a_sample_measured_twice_counts_once() -> None:
    assert table_of([*records(), *records()]) == table_of(records())


def test_a_recipe_that_is_not_measured_everywhere_is_left_out() -> None:
    table = table_of([item for item in records() if item != scored("slides", "single", 200, 1, 1.0)][:-1])
    assert set(table["recipes"]) == {"full", "slides"}
    few: list[Record] = [
        setting(),
        *(scored("full", "single", length, 0, 1.0) for length in (100, 200)),
        scored("slides", "single", 100, 0, 1.0),
    ]
    assert set(table_of(few)["recipes"]) == {"full"}


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "nothing was measured"),
        ([*records(), setting(model_fingerprint="g")], "2 different models"),
    ],
)
def test_what_does_not_belong_together_is_refused(items: list[Record], message: str) -> None:
    with pytest.raises(MixedResults, match=message):
        Results.collect(items)


def test_markdown_names_every_recipe_and_length() -> None:
    text = markdown(table_of(records()))
    for word in ("`full`", "`slides`", "100", "200", "-12.5 (", "single@both", "nats per token", "a machine"):
        assert word in text


def test_pareto_front_is_what_nothing_beats() -> None:
    assert pareto_front([(1.0, 0.5), (2.0, 0.4), (2.0, 0.9), (3.0, 0.9)]) == [0, 2]


def test_report_command_writes_table_markdown_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ResultsFile(tmp_path / "samples.jsonl") as file:
        for record in records():
            file.append(record)
    assert main(["report", "--output", str(tmp_path)]) == 0
    assert "`slides`" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"samples.jsonl", "quality.json", "quality.md", "pareto.png"}


def test_report_of_nothing_is_one_line_and_status_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "swaa eval: nothing was measured yet\n"


def test_a_plot_needs_timings(tmp_path: Path) -> None:
    untimed = [item for item in records() if item.__class__.__name__ != "Timed"]
    with pytest.raises(ValueError, match="timing-repeats"):
        plot_pareto(table_of(untimed), tmp_path / "plot.png")
