"""Ranks of tiny models on the CPU. All here is pickled by name into the other ranks' processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from swaa_runtime.config import EngineConfig
from swaa_runtime.group import Group
from swaa_runtime.kernels import elementwise_reference
from swaa_runtime.model.attention import ATTENTION_NAME
from swaa_runtime.model.fused import FusedDecoder
from swaa_runtime.model.loader import LoadedModel, wrap_model
from swaa_runtime.model.shards import shard_model
from swaa_runtime.tensor_parallel.orders import Rank
from swaa_runtime.tensor_parallel.ranks import HANG_S, Ranks, rank_devices
from swaa_runtime.tensor_parallel.runner import SharedRunner
from swaa_runtime.tensor_parallel.worker import Load
from tests.swaa_runtime.builders import RecordingRunner, Rig, build_rig, build_transformer, engine_config, tiny_config

CPU = torch.device("cpu")
SIZE = 2


def load_tiny(family: str, device: torch.device, adapters: Mapping[str, Path] | None = None) -> LoadedModel:
    """A tiny model with biases, where the family has any, that are not zero."""
    model = build_transformer(tiny_config(family), ATTENTION_NAME)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(std=0.3)
    return wrap_model(model, family, adapters)


@cache
def whole_model(family: str) -> LoadedModel:
    """The same as one process has it."""
    return load_tiny(family, CPU)


def start_ranks(load: Load, hang_s: float = HANG_S) -> Ranks:
    return Ranks(load, rank_devices("cpu", SIZE), hang_s=hang_s)


@dataclass(frozen=True, slots=True)
class Serve:
    """An order: take your part of another model. Starting ranks for each would take seconds."""

    load: Load

    def obey(self, rank: Rank) -> None:
        rank.loaded = shard_model(self.load(CPU), rank.group)


def serve(ranks: Ranks, load: Load) -> None:
    """Have all ranks take their part of another model."""
    ranks.order(Serve(load))
    ranks.loaded = shard_model(load(CPU), ranks.group)


@dataclass(frozen=True, slots=True)
class CutInto:
    """An order: cut rows into so many pieces, of so many rows at least."""

    num_pieces: int
    piece_rows: int

    def obey(self, rank: Rank) -> None:
        self.apply(rank.group)

    def apply(self, group: Group) -> None:
        group.num_pieces, group.piece_rows = self.num_pieces, self.piece_rows


class FusedRunner(RecordingRunner):
    """A runner of the fused decoder with torch's own operations."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        super().__init__(loaded, config)
        self._decoder = FusedDecoder(loaded.model, elementwise_reference, group=loaded.group)


class RecordingSharedRunner(SharedRunner, RecordingRunner):
    """One that records, on ranks that compute all positions' hidden states as well."""


class FusedSharedRunner(SharedRunner, FusedRunner):
    """The same on the fused decoder."""


def shared_rig(
    ranks: Ranks,
    config: EngineConfig | None = None,
    fused: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Rig:
    make = FusedSharedRunner if fused else RecordingSharedRunner
    theirs = FusedRunner if fused else RecordingRunner
    return build_rig(
        ranks.loaded,
        config or engine_config(max_step_tokens=21),
        clock=clock,
        make_runner=lambda loaded, config: make(ranks, config, theirs),
    )
