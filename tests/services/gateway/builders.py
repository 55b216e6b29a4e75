"""A catalogue of round figures, and what else the planner takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import grpc

from services.cost import CostProfile
from services.gateway.catalog import Catalog, NamedRecipe, QualityTable
from services.gateway.history import session_state
from services.gateway.identity import ANONYMOUS
from services.gateway.planner import Candidate, Plan, Prediction, Work
from services.gateway.sla import Objective, SlaClass
from services.restore_plan import RestorePlan
from services.sessions.store import Manifest, SegmentRef
from swaa_runtime.kv_cache.slices import SliceKey
from swaa_runtime.recipe import Recipe
from swaa_runtime.visibility import Turn

NUM_LAYERS = 4
BYTES_PER_TOKEN_LAYER = 100

RECIPES = {
    "full": Recipe(),
    "tail": Recipe(window=64, sink_tokens=4, full_decode=True, full_tail=16),
    "sliding": Recipe(window=64, sink_tokens=4),
}
RECALL = {"full": (1.0, 0.8), "tail": (0.9, 0.6), "sliding": (0.2, 0.0)}

CLASSES = {
    "quality": SlaClass("quality", "slow and good", 1e6, 1e6, 0.9, 0),
    "balanced": SlaClass("balanced", "in between", 1000.0, 100.0, 0.5, 10),
    "interactive": SlaClass("interactive", "fast", 100.0, 10.0, 0.0, 20),
}

COST = CostProfile(
    model_fingerprint="m",
    hardware="test",
    measured_at="2026-01-01T00:00:00+00:00",
    max_step_tokens=1000,
    prompt_step_ms=10.0,
    token_ms=0.1,
    pair_ns=1000.0,
    window_pair_ns=100.0,
    decode_step_ms=5.0,
    decode_key_ns=1000.0,
    restore_ms_per_mib=2.0,
)


def make_catalog() -> Catalog:
    recipes = {
        name: NamedRecipe(name, f"about {name}", recipe, recipe.resolve(NUM_LAYERS)) for name, recipe in RECIPES.items()
    }
    return Catalog(recipes, CLASSES, QualityTable("made up", (1000, 4000), RECALL))


def make_objective(**changes: Any) -> Objective:
    """An objective that everything meets, but for what is changed."""
    return replace(Objective("balanced", ttft_ms=1e9, tpot_ms=1e9, min_quality=0.0, priority=10), **changes)


def make_work(prompt_tokens: int = 1000, **changes: Any) -> Work:
    """Work whose history, if there is one, can be restored as a gateway would find out."""
    work = replace(Work(prompt_tokens, max_tokens=100, history=None, continues=False), **changes)
    if work.history is None or "states" in changes:
        return work
    found = {name: session_state(work.history, named) for name, named in make_catalog().recipes.items()}
    return replace(work, states={name: state for name, state in found.items() if state is not None})


def make_manifest(recipe_name: str = "tail", num_tokens: int = 2000, num_bytes: int = 3 << 20) -> Manifest:
    """A session of one turn under a recipe of the catalogue; all its tokens but the last have KV."""
    key = SliceKey(tuple(range(NUM_LAYERS)), 0, num_tokens - 1)
    return Manifest(
        session_id="chat",
        version=3,
        token_ids=tuple(range(num_tokens)),
        turns=(Turn(0, num_tokens - 10, num_tokens),),
        recipe=RECIPES[recipe_name],
        recipe_name=recipe_name,
        model_fingerprint="m",
        kv_format="raw",
        num_kv_tokens=num_tokens - 1,
        segments=(SegmentRef(key, "0" * 32, num_bytes),),
        created_at_s=1.0,
        updated_at_s=2.0,
        expires_at_s=3.0,
    )


def make_candidate(name: str, misses: tuple[str, ...] = (), **prediction: Any) -> Candidate:
    restore = RestorePlan("none", None, "", 0, 0, 1.0, "nothing is saved")
    figures = Prediction(1.0, 0.0, 1.0, tpot_ms=1.0, quality=1.0, kv_bytes=1, computed_tokens=1, restore=restore)
    return Candidate(make_catalog().recipes[name], replace(figures, **prediction), misses)


def make_plan() -> Plan:
    latencies: dict[str, Any] = {"ttft_ms": 12.0, "wait_ms": 7.0, "work_ms": 5.0, "tpot_ms": 3.0}
    chosen = make_candidate("tail", **latencies, quality=0.75, kv_bytes=77, computed_tokens=55, num_harmed=2)
    return Plan(chosen, "because")


class FakeContext:
    """Ends an RPC as grpc.aio does: by an exception."""

    identity = ANONYMOUS

    def __init__(self, remaining_s: float | None = None) -> None:
        self.remaining_s = remaining_s
        self.status: tuple[grpc.StatusCode, str] | None = None
        self.trailing: dict[str, str | bytes] = {}

    async def abort(
        self, code: grpc.StatusCode, details: str, trailing: Sequence[tuple[str, str | bytes]] = ()
    ) -> None:
        self.status, self.trailing = (code, details), dict(trailing)
        raise grpc.aio.AbortError

    def time_remaining(self) -> float | None:
        return self.remaining_s
