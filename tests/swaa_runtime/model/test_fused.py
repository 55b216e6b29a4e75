"""The fused decoder computes what transformers' own forward does, and shares its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3MoeConfig

from swaa_runtime.attention.backend import PagedContext
from swaa_runtime.attention.windowed import WindowedBackend
from swaa_runtime.batch import Batch
from swaa_runtime.config import EngineConfig
from swaa_runtime.errors import ModelNotSupported
from swaa_runtime.kernels import elementwise, elementwise_reference, skinny
from swaa_runtime.model.adapters import weights_fingerprint
from swaa_runtime.model.attention import ATTENTION_NAME
from swaa_runtime.model.fused import DecoderOps, FusedDecoder, check_fusable, fused_decoder
from swaa_runtime.model.loader import LoadedModel, wrap_model
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import Request
from swaa_runtime.runner import ModelRunner
from tests.swaa_runtime.builders import (
    RecordingRunner,
    assert_equals_oracle,
    build_request,
    build_rig,
    build_transformer,
    engine_config,
    random_tokens,
    tiny_config,
    write_adapter,
)

DENSE = ("llama", "mistral", "qwen2", "qwen3")
RECIPE = Recipe(window=8, sink_tokens=2, full_decode=True, full_tail=3, full_layers="1::2")


class FusedRunner(ModelRunner):
    """A runner of the fused decoder, with torch's own operations."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        super().__init__(loaded, config)
        self._fused = self.decoder(loaded)

    def decoder(self, loaded: LoadedModel) -> FusedDecoder:
        return FusedDecoder(loaded.model, elementwise_reference)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> torch.Tensor:
        slots = torch.from_numpy(batch.slots(self.storage.block_size_tokens))
        context = PagedContext(self.storage, WindowedBackend(), batch.chunks, slots)
        token_ids, positions = torch.from_numpy(batch.token_ids), torch.from_numpy(batch.positions)
        with self.adapters.active.during(batch.adapter_rows(self.device)):
            return self._fused.forward(token_ids, positions, context)


class RecordingFusedRunner(RecordingRunner, FusedRunner):
    """And one that records."""


class KernelRunner(FusedRunner):
    """A runner of the fused decoder on Triton's kernels."""

    def decoder(self, loaded: LoadedModel) -> FusedDecoder:
        return fused_decoder(loaded.model)


class RecordingKernelRunner(RecordingRunner, KernelRunner):
    """And one that records."""


RUNNERS = [RecordingFusedRunner, RecordingKernelRunner]


def fresh_model(family: str, folders: dict[str, Path] | None = None) -> LoadedModel:
    """Not the cached one, as fusing writes to it."""
    return wrap_model(build_transformer(tiny_config(family), ATTENTION_NAME), "fused", folders)


@pytest.mark.parametrize("make_runner", RUNNERS)
@pytest.mark.parametrize("family", DENSE)
def test_mixed_batches_in_chunks_equal_the_oracle(family: str, make_runner: Any) -> None:
    """The oracle goes through transformers' forward, over the same weights after they were fused."""
    loaded = fresh_model(family)
    rig = build_rig(loaded, engine_config(max_step_tokens=21), make_runner=make_runner)
    recipes = [RECIPE, Recipe(), Recipe(window=5, sink_tokens=1)]
    requests = [
        rig.add(build_request(f"r{at}", random_tokens(31 - 7 * at, at), each)) for at, each in enumerate(recipes)
    ]
    rig.run()
    for request in requests:
        assert_equals_oracle(rig, loaded, request)
