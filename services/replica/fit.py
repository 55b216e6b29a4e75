"""Fits prices to measured steps. Pure: numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from services.cost import StepWork, ms_per

TOLERANCE = 1e-9
PAIR_RATIO = 4.0


def fit_prices(work: Sequence[StepWork], times_ms: Sequence[float], names: Mapping[str, str]) -> dict[str, float]:
    """The prices under which these steps take about these times, in their own units.

    Args:
        names: the counts of a step that are priced, and the names of their prices. What was never seen costs nothing.

    A pair of query and key is the same arithmetic in every kernel. Where its two prices come out further apart than
    PAIR_RATIO, it is noise that was fitted, and one price is fitted for both.
    """
    prices = _fit_named(work, times_ms, names)
    pair, window_pair = prices["pair_ns"], prices["window_pair_ns"]
    if any(step.pairs_window for step in work) and not pair / PAIR_RATIO <= window_pair <= pair * PAIR_RATIO:
        merged = [replace(step, pairs_all=step.pairs_all + step.pairs_window, pairs_window=0.0) for step in work]
        prices = _fit_named(merged, times_ms, names)
        prices["window_pair_ns"] = prices["pair_ns"]
    return prices


def _fit_named(work: Sequence[StepWork], times_ms: Sequence[float], names: Mapping[str, str]) -> dict[str, float]:
    rows = [[float(getattr(step, count)) for count in names] for step in work]
    return {name: price / ms_per(name) for name, price in zip(names.values(), fit(rows, times_ms), strict=True)}


def fit(rows: Sequence[Sequence[float]], times_ms: Sequence[float]) -> list[float]:
    """Non-negative least squares of times on features, by relative error: short runs count as much as long ones.

    Lawson and Hanson's method: features enter one by one, by how much they would help, and leave if they turn negative.
    """
    scaled = np.asarray(rows, dtype=np.float64) / np.asarray(times_ms, dtype=np.float64)[:, None]
    norms = np.linalg.norm(scaled, axis=0)
    norms[norms == 0.0] = 1.0
    features, target = scaled / norms, np.ones(len(scaled))
    solution = np.zeros(features.shape[1])
    active = np.zeros(features.shape[1], dtype=bool)
    for _ in range(3 * features.shape[1]):
        gradient = features.T @ (target - features @ solution)
        gradient[active] = -np.inf
        best = int(np.argmax(gradient))
        if gradient[best] <= TOLERANCE:
            break
        active[best] = True
        solution = _shrink(features, target, solution, active)
    return [float(value) for value in solution / norms]


def _shrink(features: np.ndarray, target: np.ndarray, solution: np.ndarray, active: np.ndarray) -> np.ndarray:
    """The least squares of the active features; those that would be negative are stopped at 0 and made inactive."""
    while True:
        wanted = np.zeros_like(solution)
        wanted[active], *_ = np.linalg.lstsq(features[:, active], target, rcond=None)
        if not active.any() or (wanted[active] > 0.0).all():
            return wanted
        falling = active & (wanted <= 0.0)
        step = float(np.min(solution[falling] / (solution[falling] - wanted[falling])))
        solution = solution + step * (wanted - solution)
        active &= solution > TOLERANCE
        solution[~active] = 0.0
