"""What a load came to: percentiles, share of SLAs met, goodput, how good the predictions were. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from services.load.results import Result

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Group:
    """Figures of some of the requests.

    Attributes:
        ttft_ms, tpot_ms: of those answered, at `PERCENTILES`; empty if none were.
        hit_rate: share of all whose SLA was met; a refusal or an error is a miss.
        hit_latency_rate: the same, leaving quality aside.
        honest_rate: share whose SLA was met, or that were refused instead of answered late.
        mean_quality: of those answered, by the server's table; 0 if none were.
        goodput_tokens_s: prompt and generated tokens of those whose SLA was met, per second of the load.
        ttft_error_median, ttft_error_p95: |measured - predicted| / measured, of those answered.
    """

    num_requests: int
    num_ok: int
    num_refused: int
    num_errors: int
    ttft_ms: tuple[float, ...]
    tpot_ms: tuple[float, ...]
    hit_rate: float
    hit_latency_rate: float
    honest_rate: float
    mean_quality: float
    goodput_tokens_s: float
    ttft_error_median: float
    ttft_error_p95: float


@dataclass(frozen=True, slots=True)
class Report:
    """All requests, and the same by SLA class and by recipe. `duration_s`: until the last answer was there.

    `late_ms_p99`: how late the generator itself sent requests; more than a few ms means that it was not open loop.
    """

    duration_s: float
    late_ms_p99: float
    total: Group
    by_class: dict[str, Group]
    by_recipe: dict[str, Group]


def make_report(results: Sequence[Result]) -> Report:
    """The figures of a whole load, which must not be empty."""
    duration_s = max(result.sent_ms + result.total_ms for result in results) / 1e3
    late = [result.sent_ms - result.arrival_ms for result in results if not result.session]
    return Report(
        duration_s=duration_s,
        late_ms_p99=float(np.percentile(late, 99)) if late else 0.0,
        total=make_group(results, duration_s),
        by_class=_grouped(results, duration_s, lambda result: result.sla_class),
        by_recipe=_grouped([result for result in results if result.recipe], duration_s, lambda result: result.recipe),
    )


def make_group(results: Sequence[Result], duration_s: float) -> Group:
    """The figures of some requests, at least one."""
    answered = [result for result in results if result.ok]
    multiple = [result for result in answered if result.generated_tokens > 1]
    num_refused = sum(result.refused for result in results)
    met = [result for result in results if result.met]
    errors = [
        abs(result.ttft_ms - result.predicted_ttft_ms) / result.ttft_ms for result in answered if result.ttft_ms > 0
    ]
    good_tokens = sum(result.prompt_tokens + result.generated_tokens for result in met)
    return Group(
        num_requests=len(results),
        num_ok=len(answered),
        num_refused=num_refused,
        num_errors=len(results) - len(answered) - num_refused,
        ttft_ms=percentiles([result.ttft_ms for result in answered]),
        tpot_ms=percentiles([result.tpot_ms for result in multiple]),
        hit_rate=len(met) / len(results),
        hit_latency_rate=sum(result.met_latency for result in results) / len(results),
        honest_rate=(len(met) + num_refused) / len(results),
        mean_quality=float(np.mean([result.quality for result in answered])) if answered else 0.0,
        goodput_tokens_s=good_tokens / duration_s,
        ttft_error_median=float(np.percentile(errors, 50)) if errors else 0.0,
        ttft_error_p95=float(np.percentile(errors, 95)) if errors else 0.0,
    )


def percentiles(values: Sequence[float]) -> tuple[float, ...]:
    """At `PERCENTILES`, linear between the nearest two; empty for no values."""
    return tuple(float(value) for value in np.percentile(values, PERCENTILES)) if values else ()


def _grouped(results: Sequence[Result], duration_s: float, key: Callable[[Result], str]) -> dict[str, Group]:
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[key(result)].append(result)
    return {name: make_group(groups[name], duration_s) for name in sorted(groups)}
