"""What a gateway must know of a replica's model to plan for it. Plain data: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.cost import CostProfile
from swaa_runtime.shape import ModelShape


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One model on one kind of hardware.

    Attributes:
        fingerprint: weights and dtype, as saved sessions name them.
        device, attention_backend: what it runs on, in words.
        max_session_tokens: the longest session that model and KV memory take.
        eos_token_ids: tokens that end an answer.
        cost: what turns cost there.
        adapter_ids: adapters that are loaded: id (`name@content`) by name; see `Recipe.pinned`.
    """

    fingerprint: str
    device: str
    attention_backend: str
    shape: ModelShape
    max_session_tokens: int
    eos_token_ids: frozenset[int]
    cost: CostProfile
    adapter_ids: Mapping[str, str] = field(default_factory=dict)
