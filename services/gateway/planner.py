"""Objective to recipe: the best quality whose predicted latency meets the SLA. Pure: figures in, plan out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.cost import CostProfile, decode_keys, kv_tokens
from services.errors import SlaUnattainable
from services.gateway.catalog import Catalog, NamedRecipe
from services.gateway.sla import RECIPE_HEADER, Objective
from services.restore_plan import RestorePlan, SavedState, plan_restore
from services.sessions.store import Manifest
from swaa_runtime.visibility import Turn


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be served: a prompt of so many tokens after a (possibly empty) history, and the replica's backlog.

    `states`: by recipe name, KV of its start that is saved. `is_hot`: the session's is in a replica's memory.
    """

    prompt_tokens: int
    max_tokens: int
    history: Manifest | None
    continues: bool
    queue_ms: float
    states: Mapping[str, SavedState] = field(default_factory=dict)
    is_hot: bool = False

    @property
    def history_tokens(self) -> int:
        """Tokens of the session so far."""
        return 0 if self.history is None else len(self.history.token_ids)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a recipe is expected to give. `computed_tokens`: tokens to run before the first new one."""

    ttft_ms: float
    tpot_ms: float
    quality: float
    kv_bytes: int
    computed_tokens: int
    restore: RestorePlan


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
class Plan:
    """The choice, why it was made, and all that was weighed, best quality first."""

    chosen: Candidate
    reason: str
    candidates: tuple[Candidate, ...]


def predict(
    named: NamedRecipe, work: Work, catalog: Catalog, cost: CostProfile, bytes_per_token_layer: int
) -> Prediction:
    """What one recipe is expected to give for this work.

    Saved KV can be used only under the recipe it was computed under; under any other the history is recomputed.
    """
    prompt_start = work.history_tokens
    stop = prompt_start + work.prompt_tokens
    turns = (*(work.history.turns if work.history is not None else ()), Turn(prompt_start, stop))
    state = work.states.get(named.name)
    is_hot = work.is_hot and state is not None and state.source == "session"
    restore = plan_restore(named.rules, turns, stop, state, cost, is_hot)
    halfway = stop + work.max_tokens // 2
    return Prediction(
        ttft_ms=work.queue_ms + restore.predicted_ms,
        tpot_ms=cost.tpot_ms(decode_keys(named.rules, halfway)),
        quality=catalog.quality.quality_at(named.name, stop),
        kv_bytes=kv_tokens(named.rules, stop, work.continues) * bytes_per_token_layer,
        computed_tokens=stop - restore.num_restored_tokens,
        restore=restore,
    )


def misses(objective: Objective, ttft_ms: float, tpot_ms: float, quality: float | None = None) -> tuple[str, ...]:
    """What of an objective some figures miss, in words; empty if they meet it."""
    out = []
    if ttft_ms > objective.ttft_ms:
        out.append(f"ttft {ttft_ms:.0f} ms is above {objective.ttft_ms:.0f} ms")
    if tpot_ms > objective.tpot_ms:
        out.append(f"tpot {tpot_ms:.1f} ms is above {objective.tpot_ms:.1f} ms")
    if quality is not None and quality < objective.min_quality:
        out.append(f"quality {quality:.2f} is below {objective.min_quality:.2f}")
    return tuple(out)


def plan(objective: Objective, work: Work, catalog: Catalog, cost: CostProfile, bytes_per_token_layer: int) -> Plan:
    """Pick a recipe.

    Raises:
        SlaUnattainable: if the request is strict and nothing (or not the recipe it names) is predicted to meet it.
        InvalidRequest: if it names a recipe that does not exist.
    """
    candidates = []
    for named in catalog.recipes.values():
        prediction = predict(named, work, catalog, cost, bytes_per_token_layer)
        missed = misses(objective, prediction.ttft_ms, prediction.tpot_ms, prediction.quality)
        candidates.append(Candidate(named, prediction, missed))
    candidates.sort(key=lambda c: (-c.prediction.quality, c.prediction.ttft_ms))
    if objective.recipe_name is not None:
        wanted = catalog.recipe(RECIPE_HEADER, objective.recipe_name)
        chosen = next(c for c in candidates if c.named is wanted)
        reason = f"asked for by {RECIPE_HEADER}"
    else:
        chosen, reason = choose(candidates)
    if objective.strict and not chosen.meets:
        raise SlaUnattainable(
            f"strict: {chosen.named.name!r} is the nearest recipe, but its predicted {'; '.join(chosen.misses)}"
        )
    return Plan(chosen, reason, tuple(candidates))


def choose(candidates: Sequence[Candidate]) -> tuple[Candidate, str]:
    """The best of candidates that are sorted best quality first, and the reason in words."""
    meeting = [c for c in candidates if c.meets]
    if meeting:
        return meeting[0], "best quality of those predicted to meet the SLA"
    good_enough = [c for c in candidates if not any(miss.startswith("quality") for miss in c.misses)]
    if good_enough:
        fastest = min(good_enough, key=lambda c: c.prediction.ttft_ms)
        return fastest, "none is predicted to meet the SLA: the fastest of sufficient quality"
    return candidates[0], "none has sufficient quality: the best there is"
