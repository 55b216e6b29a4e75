"""The Pareto plot: quality against time to first token, and against KV memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MIB = 1 << 20


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, quality) that no other beats, by rising cost."""
    front: list[int] = []
    for at in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        if not front or points[at][1] > points[front[-1]][1]:
            front.append(at)
    return front


def plot_pareto(table: Mapping[str, Any], file: Path) -> None:
    """Draw a quality table at its longest length as PNG.

    Raises:
        ValueError: if no recipe of it was timed.
    """
    import matplotlib as mpl  # here: only who draws needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    timed = {name: entry for name, entry in table["recipes"].items() if "ttft_ms" in entry}
    if not timed:
        raise ValueError("no recipe was timed; run with --timing-repeats")
    length = table["lengths_tokens"][-1]
    costs = {
        "time to first token, ms": [entry["ttft_ms"][-1] for entry in timed.values()],
        "KV while answering, MiB": [entry["kv_bytes"][-1] / MIB for entry in timed.values()],
    }
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.5), sharey=True, layout="constrained")
    for axis, (label, values) in zip(axes, costs.items(), strict=True):
        _draw(axis, list(timed), values, [entry["recall"][-1] for entry in timed.values()])
        axis.set_xlabel(label)
        axis.set_xscale("log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean recall")
    measured = table["measured"]
    figure.suptitle(f"{table['model']} at {length:,} tokens, {measured['hardware']}, {measured['date']}")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _draw(axis: Any, names: Sequence[str], costs: Sequence[float], quality: Sequence[float]) -> None:
    front = pareto_front(list(zip(costs, quality, strict=True)))
    axis.plot([costs[at] for at in front], [quality[at] for at in front], color="tab:blue", linewidth=1, zorder=1)
    for at, name in enumerate(names):
        best = at in front
        axis.scatter(costs[at], quality[at], color="tab:blue" if best else "tab:gray", s=28, zorder=2)
        axis.annotate(name, (costs[at], quality[at]), xytext=(4, 4), textcoords="offset points", fontsize=7)
