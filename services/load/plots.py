"""Pictures of a load, as PNG files. matplotlib is imported only here, and only when a picture is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.load.report import Report
from services.load.results import Result
from swaa_runtime.errors import ModelNotSupported

INCHES = (8.0, 4.5)


def write_plots(folder: Path, results: Sequence[Result], report: Report) -> list[Path]:
    """TTFT by class, the load over time, SLAs met by class, goodput by recipe; the files.

    Raises:
        ModelNotSupported: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ModelNotSupported("plots need matplotlib: install the extra `quality` (`make setup` does)") from None
    folder.mkdir(parents=True, exist_ok=True)
    drawings = {
        "ttft_cdf": _ttft_cdf,
        "timeline": _timeline,
        "sla_hit": _sla_hit,
        "goodput": _goodput,
    }
    paths = []
    for name, draw in drawings.items():
        figure = Figure(figsize=INCHES, layout="constrained")  # no pyplot: no display, no state of the process
        draw(figure.subplots(), results, report)
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=120)
    return paths


def _ttft_cdf(axes: Any, results: Sequence[Result], report: Report) -> None:
    for name in report.by_class:
        times_s = sorted(result.ttft_ms / 1e3 for result in results if result.ok and result.sla_class == name)
        if not times_s:
            continue
        shares = [(rank + 1) / len(times_s) for rank in range(len(times_s))]
        (line,) = axes.step(times_s, shares, where="post", label=name)
        objectives_s = {result.objective_ttft_ms / 1e3 for result in results if result.ok and result.sla_class == name}
        for objective_s in objectives_s:
            axes.axvline(objective_s, color=line.get_color(), linestyle=":")
    axes.set(
        title="time to first token of answered requests (dotted: objectives)", xlabel="s", ylabel="share", xscale="log"
    )
    _legend(axes)


def _timeline(axes: Any, results: Sequence[Result], report: Report) -> None:
    answered = [result for result in results if result.ok]
    missing = [result for result in results if not result.ok]
    at_s = [result.sent_ms / 1e3 for result in answered]
    axes.scatter(at_s, [result.ttft_ms / 1e3 for result in answered], s=12, label="TTFT")
    axes.scatter(at_s, [result.queue_ms / 1e3 for result in answered], s=8, label="of which queued")
    axes.scatter(
        [result.sent_ms / 1e3 for result in missing], [0.0] * len(missing), marker="x", label="refused or failed"
    )
    axes.set(title="the load over time", xlabel="sent at, s", ylabel="s")
    _legend(axes)


def _sla_hit(axes: Any, results: Sequence[Result], report: Report) -> None:
    groups = {"all": report.total, **report.by_class}
    axes.bar(list(groups), [100 * group.hit_rate for group in groups.values()], label="met")
    refused = [100 * group.num_refused / group.num_requests for group in groups.values()]
    axes.bar(
        list(groups), refused, bottom=[100 * group.hit_rate for group in groups.values()], alpha=0.4, label="refused"
    )
    axes.set(title="SLAs met by class", ylabel="% of requests", ylim=(0, 100))
    _legend(axes)


def _goodput(axes: Any, results: Sequence[Result], report: Report) -> None:
    axes.bar(list(report.by_recipe), [group.goodput_tokens_s for group in report.by_recipe.values()])
    axes.set(title="goodput by recipe", ylabel="tokens/s of requests whose SLA was met")
    axes.tick_params(axis="x", rotation=30)


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
