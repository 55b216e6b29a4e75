"""Objective to recipe: the best quality whose predicted latency meets the SLA. Pure: figures in, plan out.

Each recipe is weighed by what it would do here and now: its own work, what waits and decodes already (see
`services.backlog`), its quality at this length, and whose promises it would break. Among equals in quality the least
work wins: it leaves the most for others. Where others wait or come, much less work wins over a little quality as well.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from services.backlog import Backlog, PendingTurn
from services.cost import CostProfile, count_layers, decode_keys, kv_tokens
from services.errors import SlaUnattainable
from services.forecast import Forecast, Steps
from services.gateway.catalog import Catalog, NamedRecipe
from services.gateway.sla import RECIPE_HEADER, Objective
from services.restore_plan import RestorePlan, SavedState, plan_restore
from services.sessions.store import Manifest
from swaa_runtime.visibility import Turn

LEAST_RETRY_MS = 1000.0
"""When to ask again if answers that are being generated are in the way: nobody knows when they end."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be served: a prompt after a (possibly empty) history, and what the replica has to do already.

    Attributes:
        spent_ms: time that has passed since the request came; beside_ms: what it will take yet beside the engine.
        states: by recipe name, KV of its start that is saved.
        is_hot: whether the session's is in the replica's memory.
    """

    prompt_tokens: int
    max_tokens: int
    history: Manifest | None
    continues: bool
    backlog: Backlog = field(default_factory=Backlog)
    spent_ms: float = 0.0
    beside_ms: float = 0.0
    states: Mapping[str, SavedState] = field(default_factory=dict)
    is_hot: bool = False

    @property
    def history_tokens(self) -> int:
        """Tokens of the session so far."""
        return 0 if self.history is None else len(self.history.token_ids)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a recipe is expected to give.

    Attributes:
        ttft_ms: from the request's arrival: `wait_ms`, and what the turn takes alone (`restore.predicted_ms`).
        wait_ms: time behind and beside other turns, since the request came, and beside the engine.
        work_ms: time that the turn itself keeps the engine busy until its first token.
        computed_tokens: tokens to run before the first new one.
        num_harmed: turns promised before, of this priority or above, that would miss what they aim at.
    """

    ttft_ms: float
    wait_ms: float
    work_ms: float
    tpot_ms: float
    quality: float
    kv_bytes: int
    computed_tokens: int
    restore: RestorePlan
    num_harmed: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One recipe with its prediction, and what of the objective it would miss."""

    named: NamedRecipe
    prediction: Prediction
    misses: tuple[str, ...]

    @property
    def meets(self) -> bool:
        """Whether the prediction meets the whole objective."""
        return not self.misses


@dataclass(frozen=True, slots=True)
class Alone:
    """What a recipe gives by itself, whatever else there is to do.

    Attributes:
        answer_ms: what each token of its answer adds to a step; chunk_ms: what each chunk of its prompt does besides.
    """

    named: NamedRecipe
    restore: RestorePlan
    tpot_ms: float
    answer_ms: float
    chunk_ms: float
    quality: float
    kv_bytes: int
    computed_tokens: int


@dataclass(frozen=True, slots=True)
class Scene:
    """All that a plan depends on."""

    objective: Objective
    work: Work
    forecast: Forecast
    catalog: Catalog
    cost: CostProfile
    bytes_per_token_layer: int

    def ranked(self, recipes: Iterable[NamedRecipe]) -> Iterator[Candidate]:
        """Recipes, weighed one by one, the best first: whoever needs no more of them need not wait for the others."""
        return map(self.weigh, sorted(map(self.alone, recipes), key=self.preference))

    def preference(self, alone: Alone) -> tuple[float, ...]:
        """Sorts the best first: by quality, less what its time costs the others.

        Whoever waits now, and whoever comes before this turn begins, waits for as long as it takes; whoever comes while
        it runs, for half of that on average. Each loses that part of an objective like this one's. Where nobody waits
        or comes, quality alone counts.
        """
        work_ms, backlog = alone.restore.work_ms, self.work.backlog
        to_come = backlog.arrivals_per_s / 1e3 * (backlog.pending_ms + work_ms / 2)
        others_ms = (len(backlog.pending) + to_come) * work_ms
        return (others_ms - alone.quality * self.objective.ttft_ms, -alone.quality, work_ms, alone.tpot_ms)

    def alone(self, named: NamedRecipe) -> Alone:
        """What a recipe gives by itself.

        Saved KV can be used only under the recipe it was computed under; under any other the history is recomputed.
        """
        work, cost = self.work, self.cost
        prompt_start = work.history_tokens
        stop = prompt_start + work.prompt_tokens
        turns = (*(work.history.turns if work.history is not None else ()), Turn(prompt_start, stop))
        state = work.states.get(named.name)
        is_hot = work.is_hot and state is not None and state.source == "session"
        restore = plan_restore(named.rules, turns, stop, state, cost, is_hot)
        num_keys = decode_keys(named.rules, stop + work.max_tokens // 2)
        return Alone(
            named,
            restore,
            cost.tpot_ms(num_keys),
            cost.answer_ms(num_keys),
            cost.chunk_ms(count_layers(named.rules), turns, stop - restore.work_tokens, stop),
            quality=self.catalog.quality.quality_at(named.name, stop),
            kv_bytes=kv_tokens(named.rules, stop, work.continues) * self.bytes_per_token_layer,
            computed_tokens=stop - restore.num_restored_tokens,
        )

    def weigh(self, alone: Alone) -> Candidate:
        """A recipe beside all that there is to do already, and what of the objective it would miss."""
        work, restore, objective = self.work, alone.restore, self.objective
        beside_ms = work.spent_ms + work.beside_ms
        newcomer = PendingTurn(
            "",
            max(1, restore.work_tokens),
            restore.work_ms,
            objective.ttft_ms - beside_ms,
            objective.priority,
            restore.fetch_ms,
            objective.tpot_ms,
            work.max_tokens,
            alone.answer_ms,
            alone.chunk_ms,
        )
        outcome = self.forecast.outcome(newcomer)
        prediction = Prediction(
            ttft_ms=beside_ms + outcome.first_token_ms,
            wait_ms=beside_ms + outcome.wait_ms,
            work_ms=restore.work_ms,
            tpot_ms=max(alone.tpot_ms, work.backlog.decode_step_ms + alone.answer_ms),
            quality=alone.quality,
            kv_bytes=alone.kv_bytes,
            computed_tokens=alone.computed_tokens,
            restore=restore,
            num_harmed=len(outcome.harmed),
        )
        missed = misses(objective, prediction.ttft_ms, prediction.tpot_ms, prediction.quality, prediction.num_harmed)
        return Candidate(alone.named, prediction, missed)

    def at(self, backlog: Backlog, forecast: Forecast) -> Scene:
        """The same request, had it come just now to a replica with this backlog."""
        return replace(self, work=replace(self.work, backlog=backlog, spent_ms=0.0), forecast=forecast)


@dataclass(frozen=True)
class Plan:
    """The choice and why it was made.

    Attributes:
        scene: what it depended on; None if there was nothing to choose.
    """

    chosen: Candidate
    reason: str
    scene: Scene | None = None

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """All recipes there are, best quality first, those too that need not have been weighed for the choice."""
        if self.scene is None:
            return ()
        ranked = self.scene.ranked(self.scene.catalog.recipes.values())
        return tuple(sorted(ranked, key=lambda candidate: -candidate.prediction.quality))


def misses(
    objective: Objective, ttft_ms: float, tpot_ms: float, quality: float | None = None, num_harmed: int = 0
) -> tuple[str, ...]:
    """What of an objective some figures miss, in words; empty if they meet it."""
    out = []
    if ttft_ms > objective.ttft_ms:
        out.append(f"ttft {ttft_ms:.0f} ms is above {objective.ttft_ms:.0f} ms")
    if tpot_ms > objective.tpot_ms:
        out.append(f"tpot {tpot_ms:.1f} ms is above {objective.tpot_ms:.1f} ms")
    if quality is not None and quality < objective.min_quality:
        out.append(f"quality {quality:.2f} is below {objective.min_quality:.2f}")
    if num_harmed:
        out.append(f"harm to {num_harmed} promised before, which would miss what they aim at")
    return tuple(out)


def steps_of(cost: CostProfile) -> Steps:
    """What a forecast has to know of steps."""
    return Steps(cost.max_step_tokens, cost.prompt_step_ms, cost.decode_step_ms, cost.mixed_row_ms)


def plan(objective: Objective, work: Work, catalog: Catalog, cost: CostProfile, bytes_per_token_layer: int) -> Plan:
    """Pick a recipe.

    Raises:
        SlaUnattainable: if the request is strict and nothing (or not the recipe it names) is predicted to meet it.
        InvalidRequest: if it names a recipe that does not exist.
    """
    forecast = Forecast(work.backlog, steps_of(cost))
    scene = Scene(objective, work, forecast, catalog, cost, bytes_per_token_layer)
    if objective.recipe_name is not None:
        eligible = [catalog.recipe(RECIPE_HEADER, objective.recipe_name)]
        [chosen], reason = scene.ranked(eligible), f"asked for by {RECIPE_HEADER}"
    else:
        eligible = list(catalog.recipes.values())
        chosen, reason = choose(scene.ranked(eligible), _others(work.backlog))
    if objective.strict and not chosen.meets:
        raise _refusal(scene, chosen, eligible)
    return Plan(chosen, reason, scene)


def _others(backlog: Backlog) -> str:
    """For whose sake time counts beside quality, in words; empty if for nobody's."""
    if backlog.pending:
        return f"{len(backlog.pending)} wait"
    return "others come" if backlog.arrivals_per_s > 0.0 else ""


def choose(candidates: Iterable[Candidate], others: str = "") -> tuple[Candidate, str]:
    """The best of candidates that come best first, and the reason in words. Takes no more of them than it needs.

    `others`: for whose sake time counted beside quality.
    """
    missing = []
    for candidate in candidates:
        if candidate.meets:
            why = f", as {others} less time counts, too" if others else ""
            return candidate, f"best quality of those predicted to meet the SLA{why}"
        missing.append(candidate)
    good_enough = [c for c in missing if not any(miss.startswith("quality") for miss in c.misses)]
    if good_enough:
        fastest = min(good_enough, key=lambda c: c.prediction.ttft_ms)
        return fastest, "none is predicted to meet the SLA: the fastest of sufficient quality"
    best = max(missing, key=lambda candidate: candidate.prediction.quality)
    return best, "none has sufficient quality: the best there is"


def _refusal(scene: Scene, nearest: Candidate, eligible: Sequence[NamedRecipe]) -> SlaUnattainable:
    """Why a strict request is refused, and when it would not be."""
    wait_ms, name = nearest.prediction.wait_ms, nearest.named.name
    nothing = Backlog()
    idle = scene.at(nothing, Forecast(nothing, steps_of(scene.cost)))
    alone = list(idle.ranked(eligible))
    would = [c for c in alone if c.meets]
    if not would:
        missed = "; ".join(next(c for c in alone if c.named.name == name).misses)
        return SlaUnattainable(
            f"strict: no recipe ever meets it here; {name!r} is the nearest, but its predicted {missed}, even if idle",
            wait_ms,
        )
    least = min(would, key=lambda c: c.prediction.work_ms)
    retry_after_ms = _retry_after_ms(scene, least.named)
    return SlaUnattainable(
        f"strict: {name!r} is the nearest recipe, but its predicted {'; '.join(nearest.misses)}, with a wait of "
        f"{wait_ms:.0f} ms; try again in {retry_after_ms:.0f} ms",
        wait_ms,
        retry_after_ms,
    )


def _retry_after_ms(scene: Scene, named: NamedRecipe) -> float:
    """When enough of the backlog is predicted to be done for a recipe that an idle replica would meet the SLA with."""
    forecast = scene.forecast
    times_ms = sorted(forecast.first_tokens_ms)

    def meets(after_ms: float) -> bool:
        later = forecast.later(after_ms)
        [candidate] = scene.at(later.backlog, later).ranked([named])
        return candidate.meets

    at = bisect_left(times_ms, True, key=meets)
    return times_ms[at] if at < len(times_ms) else max(LEAST_RETRY_MS, *times_ms, 0.0)
