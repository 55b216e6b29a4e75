"""Matmuls of a few rows equal torch's, for every shape of tile, and repeat bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from swaa_runtime.kernels import elementwise, elementwise_reference, skinny
from swaa_runtime.kernels.elementwise_reference import silu_and_mul
from swaa_runtime.kernels.skinny import (
    FEW_ROWS,
    MAX_ROWS,
    Tiles,
    choose_tiles,
    gated_linear,
    linear,
    normed_linear,
    skinny_linear,
)
from tests.swaa_runtime.kernels.test_elementwise import DEVICE, random

Check = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], None]

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
HALF_OF_SHARED_BYTES = 114 << 10
# Of Qwen3-4B: queries, keys and values; o; gate and up; down; the LM head.
REAL_SHAPES = [(6144, 2560), (2560, 4096), (19456, 2560), (2560, 9728), (151936, 2560)]


def assert_is_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    want = functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
    got = skinny_linear(x, weight, bias)
    assert got.dtype == x.dtype
    assert ((got.float() - want).norm() / want.norm()).item() <= TOLERANCE[x.dtype]
    out = torch.empty_like(got)
    assert skinny_linear(x, weight, bias, out) is out
    assert torch.equal(out, got)


def assert_is_gated_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    want, got = silu_and_mul(functional.linear(x, weight, bias)).float(), gated_linear(x, weight, bias)
    assert got.dtype == x.dtype
    assert got.shape == want.shape
    # Gate and up are rounded first, and cut off by the interpreter.
    assert ((got.float() - want).norm() / want.norm()).item() <= 2 * TOLERANCE[x.dtype]
    assert torch.equal(gated_linear(x, weight, bias), got)


def assert_is_normed_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """The twin's, and the bits of one kernel after the other."""
    residual, norm = random(len(x), len(weight), dtype=x.dtype, seed=3), random(len(weight), dtype=x.dtype, seed=4)
    for add_rms_norm, multiply, tolerance in (
        (elementwise_reference.add_rms_norm, functional.linear, 2 * TOLERANCE[x.dtype]),
        (elementwise.add_rms_norm, linear, 0.0),
    ):
        want, want_sum = add_rms_norm(multiply(x, weight, bias), residual.clone(), norm, 1e-6)
        got_sum = residual.clone()
        got = normed_linear(x, weight, bias, got_sum, norm, 1e-6)
        assert got.dtype == x.dtype
        for one, other in ((got, want), (got_sum, want_sum)):
            assert ((one.float() - other.float()).norm() / other.float().norm()).item() <= tolerance


@contextmanager
def tiles_are(tiles: Tiles) -> Iterator[None]:
    """Of every shape."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(skinny, "choose_tiles", lambda rows, columns, depth: tiles)
        yield


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
    assert_is_gated_linear(x, weight, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, MAX_ROWS + 1])
@pytest.mark.parametrize(("columns", "depth"), [(40, 48), (17, 1000)])
def test_normed_linear(rows: int, columns: int, depth: int, dtype: torch.dtype) -> None:
    x, weight = random(rows, depth, dtype=dtype), random(columns, depth, dtype=dtype, seed=1)
    assert_is_normed_linear(x, weight, random(columns, dtype=dtype, seed=2))


@given(
    rows=st.integers(2, MAX_ROWS),
    columns=st.integers(1, 150),
    depth=st.integers(1, 200),
    tile=st.sampled_from([16, 32, 64, 128]),  # both orders of the operands
    split=st.integers(1, 9),  # also parts of no inputs at all
    with_bias=st.booleans(),
    check=st.sampled_from([assert_is_linear, assert_is_gated_linear, assert_is_normed_linear]),
)
@settings(max_examples=5 if DEVICE.type == "cuda" else 40)  # each compiles
def test_however_the_weight_is_split(
    rows: int, columns: int, depth: int, tile: int, split: int, with_bias: bool, check: Check
) -> None:
    columns *= 2 if check is assert_is_gated_linear else 1
    x, weight = random(rows, depth, dtype=torch.float32), random(columns, depth, dtype=torch.float32, seed=1)
    bias = random(columns, dtype=torch.float32, seed=2) if with_bias else None
    with tiles_are(Tiles(columns=tile, depth=32, num_warps=4, num_stages=3, split=split)):
        check(x, weight, bias)


def test_a_row_does_not_depend_on_the_others() -> None:
    x, weight = random(MAX_ROWS, 1000, dtype=torch.float32), random(70, 1000, dtype=torch.float32, seed=1)
    assert choose_tiles(MAX_ROWS, *weight.shape).split > 1
    assert torch.equal(skinny_linear(x[:2], weight), skinny_linear(x, weight)[:2])


def test_more_rows_are_torchs() -> None:
    x, weight = random(MAX_ROWS + 1, 8, dtype=torch.float32), random(6, 8, dtype=torch.float32)
    assert torch.equal(linear(x, weight), functional.linear(x, weight))


@pytest.mark.parametrize(("columns", "depth"), REAL_SHAPES)
def test_there_are_enough_programs_to_fill_a_gpu(columns: int, depth: int) -> None:
    for rows in (1, 2, MAX_ROWS):
        tiles = choose_tiles(rows, columns, depth)
        assert columns / tiles.columns * tiles.split >= 132


def test_two_programs_fit_a_multiprocessor_at_once() -> None:
    for _, tiles in FEW_ROWS:
        assert tiles.num_stages * (tiles.columns + MAX_ROWS) * tiles.depth * 2 <= HALF_OF_SHARED_BYTES


def test_a_shallow_weight_has_no_part_without_inputs() -> None:
    assert choose_tiles(MAX_ROWS, 40, 48).split == 1


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 2, MAX_ROWS])
@pytest.mark.parametrize(("columns", "depth"), REAL_SHAPES)
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
    assert_is_gated_linear(x, weight, None)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 2, MAX_ROWS])
@pytest.mark.parametrize("depth", [4096, 9728])
def test_the_norms_of_a_real_model(rows: int, depth: int) -> None:
    x, weight = random(rows, depth, dtype=torch.bfloat16), random(2560, depth, dtype=torch.bfloat16, seed=1) / 50
    assert_is_normed_linear(x, weight, None)


@pytest.mark.gpu
def test_a_split_gate_of_a_real_model_in_a_graph() -> None:
    x, weight = random(MAX_ROWS, 2560, dtype=torch.bfloat16), random(19456, 2560, dtype=torch.bfloat16, seed=1) / 50
    with tiles_are(Tiles(columns=128, depth=64, num_warps=4, num_stages=4, split=3)):
        assert_is_gated_linear(x, weight, None)
        want = gated_linear(x, weight)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = gated_linear(x, weight)
    for _ in range(3):
        got.zero_()
        graph.replay()
        assert torch.equal(got, want)
