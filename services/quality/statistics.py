"""Intervals for what was measured on few samples: Wilson's for a share, a paired bootstrap for a difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z_95 = 1.959964
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def wilson(scores: Sequence[float]) -> Interval:
    """Mean of scores in 0..1 with Wilson's interval.

    Exact in spirit for scores of 0 and 1; for shares between them it is wider than need be, as they vary less.

    Raises:
        ValueError: without scores.
    """
    count = len(scores)
    if not count:
        raise ValueError("no scores to take the mean of")
    mean = sum(scores) / count
    scale = 1.0 + Z_95**2 / count
    centre = (mean + Z_95**2 / (2 * count)) / scale
    half = Z_95 / scale * math.sqrt(mean * (1.0 - mean) / count + Z_95**2 / (4 * count**2))
    return Interval(mean, max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half)))


def paired_difference(cells: Sequence[tuple[Sequence[float], Sequence[float]]], seed: int = 0) -> Interval:
    """Mean over cells of the mean difference, second minus first, of scores on the same samples.

    The samples of each cell are drawn again with replacement, pairs kept, `RESAMPLES` times; the interval is the
    2.5th to the 97.5th percentile.

    Args:
        cells: per cell (a task, a length) two equally long lists of scores.

    Raises:
        ValueError: without cells, or if a cell's lists are empty or of unequal length.
    """
    if not cells:
        raise ValueError("no cells to compare")
    rng = np.random.default_rng(seed)
    means, resampled = [], np.zeros(RESAMPLES)
    for first, second in cells:
        if len(first) != len(second) or not first:
            raise ValueError(f"a cell pairs {len(first)} scores with {len(second)}")
        difference = np.asarray(second) - np.asarray(first)
        means.append(float(difference.mean()))
        draws = rng.integers(0, len(difference), size=(RESAMPLES, len(difference)))
        resampled += difference[draws].mean(axis=1)
    low, high = np.percentile(resampled / len(cells), [2.5, 97.5])
    return Interval(float(np.mean(means)), float(low), float(high))
