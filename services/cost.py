"""What a turn costs on this hardware: a small linear model whose coefficients are measured, never guessed.

    prefill_ms = steps * step_ms + tokens * token_ms + pairs_all * pair_ns + pairs_window * window_pair_ns
    tpot_ms    = decode_step_ms + keys * decode_key_ns

`pairs` count (query, key) pairs over all layers: the work of attention (`visibility.attended_keys`). Queries that see
everything and queries that see sinks and window run different kernels, so they have a price each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from swaa_runtime.errors import InvalidRequest
from swaa_runtime.recipe import LayerRule
from swaa_runtime.visibility import Turn, attended_keys, keeps_everything, query_runs

PROFILE_VERSION = 1


@dataclass(frozen=True, slots=True)
class CostProfile:
    """Measured coefficients of one model on one machine.

    Attributes:
        model_fingerprint, hardware, measured_at: what they hold for, and when they were taken (ISO date and time).
        max_step_tokens: step budget they were measured under.
        restore_ms_per_mib: fetching, checking and placing saved KV.
    """

    model_fingerprint: str
    hardware: str
    measured_at: str
    max_step_tokens: int
    step_ms: float
    token_ms: float
    pair_ns: float
    window_pair_ns: float
    decode_step_ms: float
    decode_key_ns: float
    restore_ms_per_mib: float
    version: int = PROFILE_VERSION

    def to_mapping(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, mapping: Any) -> CostProfile:
        """Read back `to_mapping`. Raises InvalidRequest if it is not a profile of this version."""
        if not isinstance(mapping, dict):
            raise InvalidRequest("profile", mapping, "must be a JSON object; calibrate again")
        if mapping.get("version") != PROFILE_VERSION:
            raise InvalidRequest(
                "profile version", mapping.get("version"), f"must be {PROFILE_VERSION}; calibrate again"
            )
        names = {field.name for field in fields(cls)}
        if set(mapping) != names:
            raise InvalidRequest(
                "profile", sorted(set(mapping) ^ names), "has missing or unknown fields; calibrate again"
            )
        for field in fields(cls):
            if field.type == "float" and not _is_price(mapping[field.name]):
                raise InvalidRequest(
                    f"profile {field.name}", mapping[field.name], "must be a number of at least 0; calibrate again"
                )
        return cls(**mapping)

    def prefill_ms(self, work: PrefillWork) -> float:
        """Predicted time from the first step to the first token, alone on the replica."""
        coefficients = (self.step_ms, self.token_ms, self.pair_ns * 1e-6, self.window_pair_ns * 1e-6)
        return sum(c * x for c, x in zip(coefficients, work.features(self.max_step_tokens), strict=True))

    def tpot_ms(self, num_keys: float) -> float:
        """Predicted time per generated token when it attends to `num_keys` keys, summed over layers."""
        return self.decode_step_ms + num_keys * self.decode_key_ns * 1e-6


@dataclass(frozen=True, slots=True)
class PrefillWork:
    """What must be computed before the first new token."""

    num_tokens: int
    pairs_all: int
    pairs_window: int

    def features(self, max_step_tokens: int) -> tuple[float, float, float, float]:
        """(steps, tokens, pairs of queries that see all, pairs of queries that see sinks and window)."""
        steps = -(-self.num_tokens // max_step_tokens)
        return float(steps), float(self.num_tokens), float(self.pairs_all), float(self.pairs_window)


def prefill_work(rules: Sequence[LayerRule], turns: Sequence[Turn], start: int, stop: int) -> PrefillWork:
    """Work of computing tokens [start, stop) of a session under a recipe's rules."""
    pairs_all = pairs_window = 0
    for rule, count in _count(rules).items():
        for run in query_runs(rule, turns, start, stop):
            pairs = count * attended_keys(rule, turns, run.start, run.stop)
            if run.sees_all:
                pairs_all += pairs
            else:
                pairs_window += pairs
    return PrefillWork(stop - start, pairs_all, pairs_window)


def decode_keys(rules: Sequence[LayerRule], position: int) -> int:
    """Keys that a generated token at `position` attends to, summed over layers."""
    turns = (Turn(0, position),)
    return sum(count * attended_keys(rule, turns, position, position + 1) for rule, count in _count(rules).items())


def kv_tokens(rules: Sequence[LayerRule], num_tokens: int, continues: bool) -> int:
    """Tokens' KV that stay resident after a prompt of `num_tokens`, summed over layers."""
    total = 0
    for rule, count in _count(rules).items():
        if rule.window is None or keeps_everything(rule, num_tokens, num_tokens, continues):
            total += count * num_tokens
        else:
            total += count * min(num_tokens, rule.sink_tokens + rule.window - 1)
    return total


def fit(rows: Sequence[Sequence[float]], times_ms: Sequence[float]) -> list[float]:
    """Non-negative least squares of times on features, by relative error: short runs count as much as long ones.

    Solved by dropping the most negative coefficient until none is left: enough for four well-separated features.
    """
    features = np.asarray(rows, dtype=np.float64)
    times = np.asarray(times_ms, dtype=np.float64)
    scaled = features / times[:, None]
    active = list(range(features.shape[1]))
    while True:
        norms = np.linalg.norm(scaled[:, active], axis=0)
        norms[norms == 0.0] = 1.0
        solution, *_ = np.linalg.lstsq(scaled[:, active] / norms, np.ones(len(times)), rcond=None)
        solution = solution / norms
        if (solution >= 0.0).all() or len(active) == 1:
            break
        active.pop(int(np.argmin(solution * norms)))
    out = [0.0] * features.shape[1]
    for index, value in zip(active, solution, strict=True):
        out[index] = max(0.0, float(value))
    return out


def _is_price(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value < math.inf


def _count(rules: Sequence[LayerRule]) -> dict[LayerRule, int]:
    counts: dict[LayerRule, int] = {}
    for rule in rules:
        counts[rule] = counts.get(rule, 0) + 1
    return counts
