from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swaa_runtime.kv_cache.quantise import LARGEST, dequantise, quantise

LOW = [torch.int8, torch.float8_e4m3fn]
# Of a row's largest value, or of a value itself: half a step between neighbours.
STEP = {torch.int8: 0.5 / 127, torch.float8_e4m3fn: 0.5 / 8}


def rows(seed: int, spread: float) -> torch.Tensor:
    """[64, 3, 16], some much larger than others."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(64, 3, 16, generator=generator) * torch.randn(64, 3, 1, generator=generator).mul(spread).exp()


@pytest.mark.parametrize("dtype", LOW)
def test_a_row_has_a_scale_of_its_own(dtype: torch.dtype) -> None:
    want = rows(0, 3.0)
    kept, scales = quantise(want, dtype)
    assert (kept.dtype, scales.dtype, scales.shape) == (dtype, torch.float32, (64, 3))
    assert kept.float().abs().amax(-1).eq(LARGEST[dtype]).all()
    error = (dequantise(kept, scales, torch.float32) - want).abs()
    assert bool((error <= STEP[dtype] * 1.001 * want.abs().amax(-1, keepdim=True)).all())


@pytest.mark.parametrize("dtype", LOW)
def test_zeros_stay_zeros(dtype: torch.dtype) -> None:
    kept, scales = quantise(torch.zeros(2, 3, 16), dtype)
    assert not scales.any()
    assert not dequantise(kept, scales, torch.bfloat16).any()


@pytest.mark.parametrize("model_dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", LOW)
@given(seed=st.integers(0, 1000))
def test_what_leaves_and_comes_back_is_the_same(dtype: torch.dtype, model_dtype: torch.dtype, seed: int) -> None:
    kept, scales = quantise(rows(seed, 0.5).to(model_dtype), dtype)
    again, scales_again = quantise(dequantise(kept, scales, model_dtype), dtype)
    assert torch.equal(again.float(), kept.float())
    assert torch.equal(scales_again, scales)
