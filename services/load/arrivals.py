"""When requests arrive: times of a Poisson process, or of one that switches between bursts and quiet. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from swaa_runtime.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Bursts:
    """A Poisson process whose rate is modulated by two states that last exponentially long (MMPP-2).

    Attributes:
        peak: rate within a burst, as a multiple of the mean rate; above 1.
        quiet: rate between bursts, as a multiple of the mean rate; 0 up to, but not, 1.
        burst_s: mean length of a burst in seconds.
    """

    peak: float = 3.0
    quiet: float = 0.25
    burst_s: float = 5.0

    def __post_init__(self) -> None:
        if not self.peak > 1:
            raise InvalidRequest("peak", self.peak, "must be above 1")
        if not 0 <= self.quiet < 1:
            raise InvalidRequest("quiet", self.quiet, "must be in 0..1, 1 excluded")
        if not self.burst_s > 0:
            raise InvalidRequest("burst_s", self.burst_s, "must be above 0")

    @property
    def share(self) -> float:
        """Share of the time spent in bursts: what makes the mean rate 1."""
        return (1 - self.quiet) / (self.peak - self.quiet)

    @property
    def quiet_s(self) -> float:
        """Mean length of the quiet between bursts, in seconds."""
        return self.burst_s * (1 - self.share) / self.share


def arrival_times_s(
    rate_per_s: float, duration_s: float, rng: random.Random, bursts: Bursts | None = None
) -> list[float]:
    """Times in [0, duration), ascending: at `rate_per_s` on average, Poisson or in bursts.

    Raises:
        InvalidRequest: for a rate or duration that is not above 0.
    """
    if not rate_per_s > 0:
        raise InvalidRequest("rate", rate_per_s, "must be above 0")
    if not duration_s > 0:
        raise InvalidRequest("duration_s", duration_s, "must be above 0")
    times: list[float] = []
    for start_s, stop_s, factor in _phases(duration_s, rng, bursts):
        phase_rate_per_s = rate_per_s * factor
        if phase_rate_per_s == 0:  # also if it is too small for a float
            continue
        at_s = start_s + rng.expovariate(phase_rate_per_s)  # no memory: a new phase may start a new draw
        while at_s < stop_s:
            times.append(at_s)
            at_s += rng.expovariate(phase_rate_per_s)
    return times


def _phases(duration_s: float, rng: random.Random, bursts: Bursts | None) -> Iterator[tuple[float, float, float]]:
    """(start, stop, factor on the rate) one after another up to the end."""
    if bursts is None:
        yield 0.0, duration_s, 1.0
        return
    at_s, in_burst = 0.0, rng.random() < bursts.share
    while at_s < duration_s:
        length_s = rng.expovariate(1 / (bursts.burst_s if in_burst else bursts.quiet_s))
        yield at_s, min(duration_s, at_s + length_s), bursts.peak if in_burst else bursts.quiet
        at_s, in_burst = at_s + length_s, not in_burst
