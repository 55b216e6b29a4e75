"""Load or recompute: how the start of a turn's tokens gets its KV back soonest. Pure: sizes and prices in, plan out.

    load        fetch the whole state                        bytes * price of a byte
    mix         compute [0, m) while the rest is fetched     max(compute(0, m), bytes past m * price of a byte)
    recompute   compute everything from the tokens           compute(0, n)

For a mix the best m is where both sides take equally long: bytes past m only fall with m, computing only grows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from services.cost import CostProfile, prefill_work
from services.sessions.store import KVFormat, SegmentRef
from swaa_runtime.kv_cache.slices import SLICE_TOKENS, keeps_whole_history
from swaa_runtime.recipe import LayerRule
from swaa_runtime.visibility import Turn

MIB = 1 << 20

MIX_GAIN = 0.85
"""A mix must be predicted to take at most this fraction of the better pure way: it runs both on one machine."""

StateSource = Literal["session", "prefix"]
RestoreKind = Literal["none", "hot", "load", "mix", "recompute"]


@dataclass(frozen=True, slots=True)
class SavedState:
    """Where KV of the first `num_tokens` tokens can be fetched: the session's own, or a prefix (`prefix_id`)."""

    source: StateSource
    num_tokens: int
    segments: tuple[SegmentRef, ...]
    kv_format: KVFormat
    prefix_id: str = ""


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What is fetched of a saved state, and what is computed.

    Attributes:
        kind: "none" if nothing is saved; "hot" if a replica holds the state in its KV memory.
        source, prefix_id: whose state is fetched; for a hot one, should the replica have lost it. None: nobody's.
        compute_stop: tokens [0, compute_stop) are computed while the rest is fetched; 0 but for a mix.
        num_tokens: tokens that need not be computed after that.
        predicted_ms: from the start of fetching to the first new token.
        reason: the choice in words, with its figures.
        work_tokens, work_ms: what the engine computes; how much of `predicted_ms` that takes.
    """

    kind: RestoreKind
    source: StateSource | None
    prefix_id: str
    compute_stop: int
    num_tokens: int
    predicted_ms: float
    reason: str
    work_tokens: int = 1
    work_ms: float = 0.0

    @property
    def num_restored_tokens(self) -> int:
        """Tokens whose KV comes from elsewhere."""
        return self.num_tokens - self.compute_stop

    @property
    def fetch_ms(self) -> float:
        """Of `predicted_ms`, what the engine waits for what is fetched."""
        return max(0.0, self.predicted_ms - self.work_ms)


def segments_past(
    segments: Sequence[SegmentRef], num_tokens: int, rules: Sequence[LayerRule]
) -> tuple[SegmentRef, ...]:
    """Segments that are still needed once the first `num_tokens` tokens are computed.

    Those that end before are not, except in layers that keep a window, whose blocks are swapped as a whole.
    """
    return tuple(
        ref for ref in segments if ref.key.stop > num_tokens or not keeps_whole_history(rules[ref.key.layers[0]])
    )


def plan_restore(
    rules: Sequence[LayerRule],
    turns: Sequence[Turn],
    stop: int,
    state: SavedState | None,
    cost: CostProfile,
    is_hot: bool = False,
) -> RestorePlan:
    """The way to the first new token after `stop` known tokens that is predicted to be the fastest.

    Args:
        rules: the recipe in each layer; turns: spans of history's turns and of the one to come.
        is_hot: whether a replica has the session's state in its KV memory.
    """

    def compute_ms(first: int, last: int) -> float:
        return cost.prefill_ms(prefill_work(rules, turns, first, last)) if first < last else 0.0

    recompute_ms = compute_ms(0, stop)
    if state is None:
        return RestorePlan("none", None, "", 0, 0, recompute_ms, "nothing is saved", stop, recompute_ms)
    num_tokens = state.num_tokens
    rest_ms = compute_ms(num_tokens, stop)
    if is_hot:
        reason = "a replica has it in its KV memory"
        return RestorePlan(
            "hot", state.source, state.prefix_id, 0, num_tokens, rest_ms, reason, stop - num_tokens, rest_ms
        )

    def load_ms(first: int) -> float:
        return sum(ref.num_bytes for ref in segments_past(state.segments, first, rules)) / MIB * cost.restore_ms_per_mib

    whole_ms = load_ms(0)
    figures = f"loading takes {whole_ms:.0f} ms, recomputing {recompute_ms - rest_ms:.0f} ms"
    if any(keeps_whole_history(rule) for rule in rules):  # else nothing that is fetched lies past a token
        cuts = range(0, num_tokens, SLICE_TOKENS)
        at = bisect_left(cuts, True, key=lambda cut: compute_ms(0, cut) >= load_ms(cut))
        near = cuts[max(0, at - 1) : at + 1]
        cut = min(near, key=lambda cut: max(compute_ms(0, cut), load_ms(cut)))
        mixed_ms = max(compute_ms(0, cut), load_ms(cut))
        if cut and mixed_ms < MIX_GAIN * min(whole_ms, recompute_ms - rest_ms):
            reason = f"{figures}, computing {cut} tokens while loading the rest {mixed_ms:.0f} ms"
            work = (cut + stop - num_tokens, compute_ms(0, cut) + rest_ms)
            return RestorePlan("mix", state.source, state.prefix_id, cut, num_tokens, mixed_ms + rest_ms, reason, *work)
    if whole_ms + rest_ms <= recompute_ms:
        work = (stop - num_tokens, rest_ms)
        return RestorePlan("load", state.source, state.prefix_id, 0, num_tokens, whole_ms + rest_ms, figures, *work)
    return RestorePlan("recompute", None, "", 0, 0, recompute_ms, figures, stop, recompute_ms)
