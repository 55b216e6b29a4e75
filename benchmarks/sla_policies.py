"""What `bench_sla` compares, what a replica's capacity is, and how much the planner gains. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from services.cost import CostProfile, LayerCounts, count_layers, decode_keys_of, prefill_work_of
from services.gateway.catalog import Catalog
from services.gateway.sla import (
    MIN_QUALITY_HEADER,
    RECIPE_HEADER,
    SLA_HEADER,
    STRICT_HEADER,
    TPOT_HEADER,
    TTFT_HEADER,
)
from services.load.report import Group
from services.load.trace import TraceRequest, TraceSpec, make_trace
from swaa_runtime.config import SchedulingPolicy
from swaa_runtime.visibility import Turn

DEFAULT_SCHEDULING: SchedulingPolicy = "slack"
"""The service's own scheduling policy, as its setting names it."""

SAMPLE_S = 2000.0
"""One request a second: enough of them for the mean work."""


@dataclass(frozen=True, slots=True)
class Policy:
    """One way to serve the load. `recipe`: the one that all requests ask for, if it is one."""

    name: str
    scheduling: SchedulingPolicy = DEFAULT_SCHEDULING
    recipe: str | None = None
    strict: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """What it adds to every request's."""
        recipe = {RECIPE_HEADER: self.recipe} if self.recipe is not None else {}
        return {**recipe, **({STRICT_HEADER: "true"} if self.strict else {})}

    def asked(self, requests: Sequence[TraceRequest]) -> list[TraceRequest]:
        """Requests with its headers."""
        return [replace(each, headers={**each.headers, **self.headers}) for each in requests]

    @property
    def is_fixed(self) -> bool:
        """Whether it is one of those that the planner is to beat."""
        return self.name.startswith("fixed: ")


@dataclass(frozen=True, slots=True)
class Objectives:
    """What requests ask for, by SLA class; what is not named here is the class's own.

    Attributes:
        ttft: time to first token in multiples of `Setup.unit_ms`, of every class.
        tpot: time per token in multiples of `Setup.token_ms`.
        min_quality: floors.
    """

    ttft: Mapping[str, float]
    tpot: Mapping[str, float] = field(default_factory=dict)
    min_quality: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one policy at one load."""

    policy: Policy
    load: float
    figures: Group


@dataclass(frozen=True, slots=True)
class Setup:
    """What is known of the service before it is loaded.

    Attributes:
        mean_ms: mean work of a request, by recipe.
        token_ms: mean time per token of an answer under the reference, with nothing else to do.
        reference: the recipe of the best mean quality, and of those the one of least work: what one would run that has
            time. Beyond its capacity something has to give.
        crowding: what requests under the reference take where many wait, in multiples of their work alone. Steps end
            early for the answers beside them, so there are more, of which each takes something besides its tokens.
    """

    profile: CostProfile
    mean_ms: Mapping[str, float]
    reference: str = "full"
    token_ms: float = 0.0
    crowding: float = 1.0

    @property
    def unit_ms(self) -> float:
        """Mean work of a request under the reference."""
        return self.mean_ms[self.reference]

    @property
    def capacity_per_s(self) -> float:
        """Requests per second that keep one replica exactly busy under the reference."""
        return 1e3 / (self.unit_ms * self.crowding)

    def window_s(self, budget_s: float, loads: Sequence[float], chosen: Sequence[Policy]) -> float:
        """How long requests may arrive at each load, so that all of it, with its queues, takes the budget."""
        shares = [self.mean_ms[policy.recipe or self.reference] / self.unit_ms for policy in chosen]
        return budget_s / sum(max(1.0, load * share) for load in loads for share in shares)


def all_policies(fixed: Sequence[str]) -> list[Policy]:
    """Those of one scheduling policy together, as each needs a service of its own."""
    return [
        *(Policy(f"fixed: {name}", recipe=name) for name in fixed),
        Policy("planner"),
        Policy("planner strict", strict=True),
        Policy("fcfs: full", "fcfs", "full"),
        Policy("fcfs: planner", "fcfs"),
    ]


def measure_setup(profile: CostProfile, catalog: Catalog, spec: TraceSpec) -> Setup:
    """The mean work of the requests that a spec makes."""
    sample = make_trace(replace(spec, rate_per_s=1.0, duration_s=SAMPLE_S))
    layers = {name: count_layers(named.rules) for name, named in catalog.recipes.items()}
    mean_ms = {
        name: sum(request_ms(profile, counts, request) for request in sample) / len(sample)
        for name, counts in layers.items()
    }
    quality = {
        name: sum(catalog.quality.quality_at(name, request.prompt_tokens) for request in sample) / len(sample)
        for name in catalog.recipes
    }
    reference = max(mean_ms, key=lambda name: (quality[name], -mean_ms[name]))
    tokens_ms = [profile.tpot_ms(decode_keys_of(layers[reference], request.prompt_tokens)) for request in sample]
    return Setup(profile, mean_ms, reference, sum(tokens_ms) / len(tokens_ms))


def request_ms(profile: CostProfile, layers: LayerCounts, request: TraceRequest) -> float:
    """What a request's tokens take; its answer's ride along in others' steps."""
    stop = request.prompt_tokens
    prefill = profile.prefill_ms(prefill_work_of(layers, (Turn(0, stop),), 0, stop))
    token = profile.answer_ms(decode_keys_of(layers, stop))
    return prefill + (request.max_tokens - 1) * token


def requests_of(spec: TraceSpec, objectives: Objectives, setup: Setup) -> list[TraceRequest]:
    """A trace whose requests ask for what the objectives say."""

    def headers(request: TraceRequest) -> dict[str, str]:
        sla_class = request.headers[SLA_HEADER]
        asked = {TTFT_HEADER: f"{objectives.ttft[sla_class] * setup.unit_ms:.1f}"}
        if sla_class in objectives.tpot:
            asked[TPOT_HEADER] = f"{objectives.tpot[sla_class] * setup.token_ms:.1f}"
        if sla_class in objectives.min_quality:
            asked[MIN_QUALITY_HEADER] = str(objectives.min_quality[sla_class])
        return {**request.headers, **asked}

    return [replace(request, headers=headers(request)) for request in make_trace(spec)]


def gains(rows: Sequence[Row], policy: str = "planner") -> dict[float, dict[str, Any]]:
    """By load, the planner beside the best fixed recipe that keeps at least its mean quality."""
    out: dict[float, dict[str, Any]] = {}
    for row in rows:
        if row.policy.name != policy:
            continue
        rivals = [other for other in rows if other.policy.is_fixed and other.load == row.load]
        as_good = [other for other in rivals if other.figures.mean_quality >= row.figures.mean_quality]
        if not as_good:
            continue
        best = max(as_good, key=lambda other: other.figures.hit_rate)
        out[row.load] = {
            "hit_rate": row.figures.hit_rate,
            "mean_quality": row.figures.mean_quality,
            "best_fixed": best.policy.recipe,
            "best_fixed_hit_rate": best.figures.hit_rate,
            "best_fixed_mean_quality": best.figures.mean_quality,
            "gain_points": 100 * (row.figures.hit_rate - best.figures.hit_rate),
        }
    return out
