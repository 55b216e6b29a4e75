"""Matmuls of a few rows equal torch's, for every shape of tile, and repeat bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from swaa_runtime.kernels.elementwise_reference import silu_and_mul
from swaa_runtime.kernels.skinny import MANY_COLUMNS, MAX_ROWS, choose_tiles, gated_linear, linear, skinny_linear
from tests.swaa_runtime.kernels.test_elementwise import DEVICE, random

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}


def assert_is_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    want = functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
    got = skinny_linear(x, weight, bias)
    assert got.dtype == x.dtype
    assert ((got.float() - want).norm() / want.norm()).item() <= TOLERANCE[x.dtype]
    out = torch.empty_like(got)
    assert skinny_linear(x, weight, bias, out) is out
    assert torch.equal(out, got)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, MAX_ROWS])
@pytest.mark.parametrize(("columns", "depth"), [(40, 48), (50, 512), (17, 1000)])
@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
def test_skinny_linear(rows: int, columns: int, depth: int, with_bias: bool, dtype: torch.dtype) -> None:
    x, weight = random(rows, depth, dtype=dtype), random(columns, depth, dtype=dtype, seed=1)
    assert_is_linear(x, weight, random(columns, dtype=dtype, seed=2) if with_bias else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, MAX_ROWS + 1])
@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
def test_gated_linear(rows: int, with_bias: bool, dtype: torch.dtype) -> None:
    x, weight = random(rows, 48, dtype=dtype), random(2 * 21, 48, dtype=dtype, seed=1)
    bias = random(2 * 21, dtype=dtype, seed=2) if with_bias else None
    want, got = silu_and_mul(functional.linear(x, weight, bias)).float(), gated_linear(x, weight, bias)
    assert got.dtype == dtype
    assert got.shape == want.shape
    # Gate and up are rounded first, and cut off by the interpreter.
    assert ((got.float() - want).norm() / want.norm()).item() <= 2 * TOLERANCE[dtype]


def test_more_rows_are_torchs() -> None:
    x, weight = random(MAX_ROWS + 1, 8, dtype=torch.float32), random(6, 8, dtype=torch.float32)
    assert torch.equal(linear(x, weight), functional.linear(x, weight))


@pytest.mark.parametrize("columns", [2560, 6144, MANY_COLUMNS])
def test_there_are_enough_programs_to_fill_a_gpu(columns: int) -> None:
    for rows in (1, 2, MAX_ROWS):
        assert columns / choose_tiles(rows, columns).columns >= 132


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 2, MAX_ROWS])
@pytest.mark.parametrize(
    ("columns", "depth"), [(6144, 2560), (2560, 4096), (19456, 2560), (2560, 9728), (151936, 2560)]
)
def test_the_shapes_of_a_real_model_in_a_graph(rows: int, columns: int, depth: int) -> None:
    x, weight = random(rows, depth, dtype=torch.bfloat16), random(columns, depth, dtype=torch.bfloat16, seed=1)
    assert_is_linear(x, weight, None)
    want, out = skinny_linear(x, weight), torch.empty(rows, columns, dtype=torch.bfloat16, device=DEVICE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        skinny_linear(x, weight, out=out)
    graph.replay()
    assert torch.equal(out, want)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 2, MAX_ROWS])
def test_the_gate_of_a_real_model(rows: int) -> None:
    x, weight = random(rows, 2560, dtype=torch.bfloat16), random(19456, 2560, dtype=torch.bfloat16, seed=1) / 50
    want = silu_and_mul(functional.linear(x, weight)).float()
    assert ((gated_linear(x, weight).float() - want).norm() / want.norm()).item() <= 1e-2
