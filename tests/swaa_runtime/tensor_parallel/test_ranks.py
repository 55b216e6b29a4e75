"""What cannot be shared out among ranks is refused, with the reason."""

from __future__ import annotations

import multiprocessing
from functools import partial

import pytest
import torch

from swaa_runtime.errors import EngineFailed, ModelNotSupported
from swaa_runtime.model.loader import LoadedModel
from swaa_runtime.model.shards import check_shardable
from swaa_runtime.tensor_parallel.ranks import Ranks, rank_devices
from tests.swaa_runtime.builders import tiny_config
from tests.swaa_runtime.tensor_parallel.builders import SIZE, load_tiny, start_ranks


@pytest.mark.parametrize(
    ("family", "size", "reason"),
    [
        ("llama", 4, "num_key_value_heads is 2: cannot be divided among 4 ranks"),
        ("llama", 3, "cannot be divided among 3 ranks"),
        ("qwen3_moe", 2, "tensor parallelism has llama, mistral, qwen2, qwen3"),
    ],
)
def test_a_model_that_cannot_be_shared_out_is_refused(family: str, size: int, reason: str) -> None:
    with pytest.raises(ModelNotSupported, match=reason):
        check_shardable(tiny_config(family), size)


def test_more_gpus_than_there_are_are_refused_before_anything_starts() -> None:
    count = torch.cuda.device_count() + 1
    with pytest.raises(ModelNotSupported, match=f"{count} GPUs are asked for"):
        Ranks(partial(load_tiny, "llama"), rank_devices("cuda", count))


def load_in_the_parent(device: torch.device) -> LoadedModel:
    if multiprocessing.parent_process() is not None:
        raise ModelNotSupported("no memory for it")
    return load_tiny("llama", device)


def test_a_rank_that_does_not_load_says_why() -> None:
    with pytest.raises(EngineFailed, match=f"rank 1 of {SIZE} did not start: ModelNotSupported: no memory for it"):
        start_ranks(load_in_the_parent)
