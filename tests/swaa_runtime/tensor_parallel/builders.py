"""Ranks of tiny models on the CPU. All here is pickled by name into the other ranks' processes."""

from __future__ import annotations

import torch

from swaa_runtime.config import EngineConfig
from swaa_runtime.model.attention import ATTENTION_NAME
from swaa_runtime.model.loader import LoadedModel, wrap_model
from swaa_runtime.tensor_parallel.ranks import Ranks
from swaa_runtime.tensor_parallel.runner import SharedRunner
from tests.swaa_runtime.builders import RecordingRunner, Rig, build_rig, build_transformer, engine_config, tiny_config


def load_tiny(family: str, device: torch.device) -> LoadedModel:
    """As `tiny_model`, but not the cached one: a part of it is taken."""
    return wrap_model(build_transformer(tiny_config(family), ATTENTION_NAME), family)


class RecordingSharedRunner(SharedRunner, RecordingRunner):
    """One that records, on ranks that compute all positions' hidden states as well."""


def shared_rig(ranks: Ranks, config: EngineConfig | None = None) -> Rig:
    def make(loaded: LoadedModel, config: EngineConfig) -> RecordingRunner:
        return RecordingSharedRunner(ranks, config, RecordingRunner)

    return build_rig(ranks.loaded, config or engine_config(max_step_tokens=21), make_runner=make)
