"""The KV pool's share of a GPU, and which attention runs there."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.config import load_config
from services.replica.kv_memory import RESERVED_BYTES, kv_pool_bytes, step_bytes
from services.replica.parts import attention_backend
from swaa_runtime.config import EngineConfig
from swaa_runtime.errors import ModelNotSupported
from swaa_runtime.shape import ModelShape
from tests.swaa_runtime.builders import tiny_model

QWEN3_4B = ModelShape(36, 32, 8, 128, 151_936, 131_072, "bfloat16")
GIB = 1 << 30


def needed(**config: Any) -> int:
    tokens = config.pop("max_tokens", 131_072)
    settings = {"num_blocks": 2, "max_model_tokens": tokens, "max_step_tokens": 8192} | config
    return step_bytes(QWEN3_4B, 2560, 9728, tokens, EngineConfig(**settings))


def test_a_card_of_80_gib_keeps_most_for_the_pool() -> None:
    """Qwen3-4B: 8 GB of weights, steps of 8,192 tokens."""
    assert 2 * GIB < needed() < 4 * GIB
    assert kv_pool_bytes(71 * GIB, needed()) > 60 * GIB


@pytest.mark.parametrize(
    "more", [{"max_step_tokens": 16384}, {"max_running": 128}, {"max_tokens": 1_000_000}, {"block_size_tokens": 16}]
)
def test_larger_steps_and_longer_sequences_need_more(more: dict[str, int]) -> None:
    assert needed(**more) > needed()


def test_a_step_that_is_interrupted_by_one_of_its_own_size_needs_more_and_by_small_ones_does_not() -> None:
    never = needed(interrupt_tokens=0)
    assert needed(interrupt_tokens=2048) == needed(interrupt_tokens=8193) == never
    assert never < needed(interrupt_tokens=8192) < 1.5 * never


@given(st.integers(0, 200 * GIB), st.integers(0, 10 * GIB))
def test_pool_and_step_fit_into_what_is_free(free_bytes: int, needed_bytes: int) -> None:
    if free_bytes <= needed_bytes + RESERVED_BYTES + 1:
        with pytest.raises(ModelNotSupported, match="lower max_step_tokens"):
            kv_pool_bytes(free_bytes, needed_bytes)
    else:
        assert 0 < kv_pool_bytes(free_bytes, needed_bytes) + needed_bytes + RESERVED_BYTES <= free_bytes


def test_a_cpu_has_the_windowed_backend_and_refuses_triton() -> None:
    assert attention_backend(load_config(device="cpu"), tiny_model()) == "windowed"
    assert attention_backend(load_config(attention_backend="reference"), tiny_model()) == "reference"
    with pytest.raises(ModelNotSupported, match="needs device 'cuda'"):
        attention_backend(load_config(attention_backend="triton"), tiny_model())


def test_auto_on_cuda_is_triton_for_shapes_that_it_takes() -> None:
    tiny = tiny_model()
    assert attention_backend(load_config(device="cuda"), tiny) == "windowed", "heads of 8 are too small"
