"""From results to tables: quality by recipe and length with intervals, as data for the planner and as Markdown."""

from __future__ import annotations

import statistics as stats
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.quality.results import PERPLEXITY, Record, Scored, Setting, Timed
from services.quality.statistics import Interval, paired_difference, wilson

BASELINE = "full"
TABLE_VERSION = 2
MIB = 1 << 20

Cell = dict[tuple[int, int], float]
"""Scores of one recipe on one task at one length, by seed and index."""


class MixedResults(ValueError):
    """Results in one folder that do not belong together."""


@dataclass(slots=True)
class Results:
    """Records, sorted into cells.

    Attributes:
        cells: (recipe, task, length) to scores.
        timed: (recipe, length) to timings.
    """

    settings: list[Setting] = field(default_factory=list)
    cells: dict[tuple[str, str, int], Cell] = field(default_factory=lambda: defaultdict(dict))
    timed: dict[tuple[str, int], list[Timed]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def collect(cls, records: Iterable[Record]) -> Results:
        """Sort records. A sample measured twice counts once.

        Raises:
            MixedResults: if models differ, a recipe changed under its name, or nothing was measured.
        """
        results = cls()
        fingerprints: dict[str, str] = {}
        for record in records:
            if isinstance(record, Setting):
                results.settings.append(record)
                continue
            key = record.key if isinstance(record, Scored) else record
            if fingerprints.setdefault(key.recipe, key.recipe_fingerprint) != key.recipe_fingerprint:
                raise MixedResults(f"recipe {key.recipe!r} was measured as two different recipes; use another folder")
            if isinstance(record, Scored):
                cell = results.cells[record.key.recipe, record.key.task, record.key.length_tokens]
                cell.setdefault((record.key.seed, record.key.index), record.score)
            else:
                results.timed[record.recipe, record.length_tokens].append(record)
        if not results.settings or not results.cells:
            raise MixedResults("nothing was measured yet")
        models = {setting.model_fingerprint for setting in results.settings}
        if len(models) > 1:
            raise MixedResults(f"results are of {len(models)} different models; use a folder for each")
        return results

    @property
    def recipes(self) -> list[str]:
        """Names in the order of the recipes' file."""
        order = {name: None for setting in self.settings for name in setting.recipes}
        measured = {name for name, _, _ in self.cells}
        return [name for name in order if name in measured]

    @property
    def lengths(self) -> list[int]:
        """Measured lengths in tokens."""
        return sorted({length for _, _, length in self.cells})

    @property
    def tasks(self) -> list[str]:
        """Tasks but perplexity, in the order they came."""
        return list(dict.fromkeys(task for _, task, _ in self.cells if task != PERPLEXITY))

    def scores(self, recipe: str, tasks: Sequence[str], length: int) -> list[float]:
        """All scores of a recipe at a length."""
        return [score for task in tasks for score in self.cells.get((recipe, task, length), {}).values()]

    def mean(self, recipe: str, tasks: Sequence[str], length: int) -> Interval | None:
        """Mean over tasks, each counting the same, with Wilson's interval of all their samples.

        None if some task was not measured.
        """
        cells = [list(self.cells.get((recipe, task, length), {}).values()) for task in tasks]
        if not cells or not all(cells):
            return None
        pooled = wilson([score for cell in cells for score in cell])
        mean = stats.fmean(stats.fmean(cell) for cell in cells)
        return Interval(mean, min(mean, pooled.low), max(mean, pooled.high))

    def difference(self, recipe: str, tasks: Sequence[str], lengths: Sequence[int]) -> Interval | None:
        """Recipe minus full attention on the samples that both have; None if they share none in some cell."""
        pairs = []
        for task in tasks:
            for length in lengths:
                full, other = (self.cells.get((name, task, length), {}) for name in (BASELINE, recipe))
                both = sorted(full.keys() & other.keys())
                if not both:
                    return None
                pairs.append(([full[at] for at in both], [other[at] for at in both]))
        return paired_difference(pairs) if pairs else None

    def ttft_ms(self, recipe: str, length: int) -> float | None:
        """Median time to first token."""
        timed = self.timed.get((recipe, length))
        return stats.median(item.ttft_ms for item in timed) if timed else None

    def kv_bytes(self, recipe: str, length: int) -> int | None:
        """KV held while the answer is generated."""
        timed = self.timed.get((recipe, length))
        return timed[0].kv_bytes if timed else None


def tasks_of_mean(results: Results) -> list[str]:
    """Tasks that count in the mean by default: generated ones with the question at the end."""
    return [task for task in results.tasks if "@" not in task and ":" not in task]


def quality_table(
    results: Results, tasks: Sequence[str], note: str = "", lengths: Sequence[int] | None = None
) -> dict[str, Any]:
    """The table that the planner reads: `recall` per recipe is the mean over `tasks` at each of `lengths`, or of all.

    A superset of what version 1 had: `recipes.<name>.recall`, `lengths_tokens`, `task`, `measured`.
    """
    setting = results.settings[0]
    lengths = [length for length in lengths or results.lengths if results.scores(BASELINE, tasks, length)]
    counts = [len(results.scores(name, tasks, at)) for name in results.recipes for at in lengths]
    hardware = sorted({item.hardware for item in results.settings})
    return {
        "version": TABLE_VERSION,
        "model": setting.model,
        "model_fingerprint": setting.model_fingerprint,
        "task": f"mean over {', '.join(tasks)}; share of references found, chat template, greedy",
        "tasks": list(tasks),
        "measured": {
            "hardware": ", ".join(hardware),
            "date": max(item.date for item in results.settings),
            "command": setting.command,
            "samples": min(count for count in counts if count),
            "versions": setting.versions,
            "note": note,
        },
        "lengths_tokens": lengths,
        "recipes": {
            name: entry for name in results.recipes if (entry := _entry(results, name, tasks, lengths)) is not None
        },
    }


def _entry(results: Results, name: str, tasks: Sequence[str], lengths: Sequence[int]) -> dict[str, Any] | None:
    means = [results.mean(name, tasks, length) for length in lengths]
    if any(mean is None for mean in means):
        return None
    recipe = next(setting.recipes[name] for setting in results.settings if name in setting.recipes)
    entry: dict[str, Any] = {
        "recipe": recipe,
        **_columns(means),
        "samples": [len(results.scores(name, tasks, length)) for length in lengths],
        "tasks": {},
    }
    for task in results.tasks:
        rows = [results.mean(name, [task], length) for length in lengths]
        if all(row is not None for row in rows):
            samples = [len(results.scores(name, [task], length)) for length in lengths]
            entry["tasks"][task] = {**_columns(rows), "samples": samples}
    difference = [results.difference(name, tasks, [length]) for length in lengths]
    overall = results.difference(name, tasks, lengths)
    if overall is not None:
        entry["difference_from_full"] = {
            "overall": _rounded(overall),
            "by_length": [_rounded(item) for item in difference],
        }
    ttft = [results.ttft_ms(name, length) for length in lengths]
    if all(value is not None for value in ttft):
        entry["ttft_ms"] = [round(value, 2) for value in ttft if value is not None]
        entry["kv_bytes"] = [results.kv_bytes(name, length) for length in lengths]
    nats = [_nats(results, name, length) for length in lengths]
    if all(value is not None for value in nats):
        entry["nats_per_token"] = [round(value, 4) for value in nats if value is not None]
    return entry


def _columns(rows: Sequence[Interval | None]) -> dict[str, Any]:
    known = [row for row in rows if row is not None]
    return {
        "recall": [round(row.mean, 4) for row in known],
        "interval": [[round(row.low, 4), round(row.high, 4)] for row in known],
    }


def _rounded(interval: Interval | None) -> dict[str, float] | None:
    if interval is None:
        return None
    return {"mean": round(interval.mean, 4), "low": round(interval.low, 4), "high": round(interval.high, 4)}


def _nats(results: Results, name: str, length: int) -> float | None:
    cell = results.cells.get((name, PERPLEXITY, length))
    return stats.fmean(cell.values()) if cell else None


def markdown(table: Mapping[str, Any]) -> str:
    """The table for people: means and intervals by length, then by task, then perplexity."""
    measured, lengths = table["measured"], table["lengths_tokens"]
    parts = [
        f"{table['model']}: {table['task']}. At least {measured['samples']} samples a cell, 95 % intervals (Wilson); "
        "difference from full attention on the same samples in points (paired bootstrap). "
        f"{measured['hardware']}, {measured['date']}.",
        _by_length(table, lengths),
        _by_task(table),
    ]
    if any("nats_per_token" in entry for entry in table["recipes"].values()):
        parts.append(_perplexity(table, lengths))
    return "\n\n".join(parts) + "\n"


def _by_length(table: Mapping[str, Any], lengths: Sequence[int]) -> str:
    header = ["recipe", *(f"{length:,}" for length in lengths), "mean", "against full, points"]
    header += [f"TTFT at {lengths[-1]:,}, ms", "KV, MiB"]
    rows = []
    for name, entry in table["recipes"].items():
        cells = [
            f"{mean:.2f} ({low:.2f} to {high:.2f})"
            for mean, (low, high) in zip(entry["recall"], entry["interval"], strict=True)
        ]
        overall = entry.get("difference_from_full", {}).get("overall")
        points = "-"
        if overall is not None and name != BASELINE:
            points = f"{100 * overall['mean']:+.1f} ({100 * overall['low']:+.1f} to {100 * overall['high']:+.1f})"
        speed = (
            [f"{entry['ttft_ms'][-1]:,.0f}", f"{entry['kv_bytes'][-1] / MIB:,.1f}"]
            if "ttft_ms" in entry
            else ["-", "-"]
        )
        rows.append([f"`{name}`", *cells, f"{stats.fmean(entry['recall']):.3f}", points, *speed])
    return _render(header, rows)


def _by_task(table: Mapping[str, Any]) -> str:
    tasks = list(dict.fromkeys(task for entry in table["recipes"].values() for task in entry["tasks"]))
    rows = []
    for name, entry in table["recipes"].items():
        means = [entry["tasks"].get(task, {}).get("recall") for task in tasks]
        rows.append([f"`{name}`", *("-" if mean is None else f"{stats.fmean(mean):.2f}" for mean in means)])
    return _render(["recipe", *tasks], rows)


def _perplexity(table: Mapping[str, Any], lengths: Sequence[int]) -> str:
    rows = [
        [f"`{name}`", *(f"{value:.3f}" for value in entry["nats_per_token"])]
        for name, entry in table["recipes"].items()
        if "nats_per_token" in entry
    ]
    return _render(["nats per token", *(f"{length:,}" for length in lengths)], rows)


def _render(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
