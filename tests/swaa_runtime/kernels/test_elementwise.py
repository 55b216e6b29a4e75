"""Each kernel gives what its plain twin gives: in Triton's interpreter, and on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch

from swaa_runtime.kernels import elementwise, elementwise_reference
from swaa_runtime.kernels.overlap import FEW_TOKENS
from swaa_runtime.kv_cache.quantise import dequantise

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 1e-6
DTYPES = [torch.float32, torch.bfloat16]
# Relative, of the whole: float32 is summed in another order; the interpreter cuts bfloat16 off instead of rounding it.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2 if DEVICE.type == "cuda" else 2e-2}


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def assert_same(got: torch.Tensor, want: torch.Tensor, bound: float | None = None) -> None:
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    error = (got.float() - want.float()).norm() / want.float().norm()
    assert error.item() <= (bound or TOLERANCE[want.dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 16), (5, 48), (3, 1000)])
def test_rms_norm(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, weight = random(*shape, dtype=dtype), random(shape[1], dtype=dtype, seed=1)
    want = elementwise_reference.rms_norm(x, weight, EPS)
    assert_same(elementwise.rms_norm(x, weight, EPS), want)
    assert elementwise.rms_norm(x, weight, EPS, out=x) is x
    assert_same(x, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm_adds_in_place(dtype: torch.dtype) -> None:
    x, residual = random(5, 48, dtype=dtype), random(5, 48, dtype=dtype, seed=1)
    weight, want_residual = random(48, dtype=dtype, seed=2), residual.clone()
    want, _ = elementwise_reference.add_rms_norm(x, want_residual, weight, EPS)
    normed, summed = elementwise.add_rms_norm(x, residual, weight, EPS, out=x)
    assert normed is x
    assert summed is residual
    assert_same(normed, want)
    assert_same(summed, want_residual)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 16), (3, 48), (2, 1500)])
def test_silu_and_mul(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = random(shape[0], 2 * shape[1], dtype=dtype)
    want = elementwise_reference.silu_and_mul(x)
    out = torch.empty_like(want)
    assert elementwise.silu_and_mul(x, out) is out
    assert_same(out, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_norm", [False, True], ids=["", "norm"])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 2, 8), (9, 3, 4), (2, 2, 2)])
@pytest.mark.parametrize("num_tokens", [3, FEW_TOKENS + 3])
def test_norm_rope_and_store(
    num_tokens: int, num_heads: int, num_kv_heads: int, head_dim: int, with_norm: bool, dtype: torch.dtype
) -> None:
    qkv = random(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim, dtype=dtype)
    cos, sin = (random(num_tokens, head_dim, dtype=dtype, seed=seed) for seed in (1, 2))
    norms = [random(head_dim, dtype=dtype, seed=seed) if with_norm else None for seed in (3, 4)]
    slots = torch.randperm(80, generator=torch.Generator().manual_seed(5))[:num_tokens].to(DEVICE)
    slots[1] = -1
    results = []
    for ops in (elementwise, elementwise_reference):
        keys, values = (torch.full((10, 8, num_kv_heads, head_dim), 7.0, dtype=dtype, device=DEVICE) for _ in range(2))
        query = ops.norm_rope_and_store(qkv.clone(), cos, sin, norms[0], norms[1], EPS, slots, keys, values)
        results.append((query, keys, values))
    for got, want in zip(*results, strict=True):
        assert_same(got, want)
    assert results[0][0].shape == (num_tokens, num_heads, head_dim)
    untouched = (results[0][2].view(80, -1) == 7.0).all(dim=1).sum().item()
    assert untouched == 80 - (num_tokens - 1), "a token without a slot is stored nowhere"


@pytest.mark.parametrize("kept_in", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [3, FEW_TOKENS + 3])
def test_keys_and_values_are_stored_in_8_bits(num_tokens: int, dtype: torch.dtype, kept_in: torch.dtype) -> None:
    """One token's are all zero; one has no slot. The interpreter rounds float8 anyhow; ties may go either way."""
    bound = 0.1 if DEVICE.type == "cpu" and kept_in is torch.float8_e4m3fn else max(1e-3, TOLERANCE[dtype])
    num_heads, num_kv_heads, head_dim = 4, 2, 8
    qkv = random(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim, dtype=dtype)
    qkv[2] = 0.0
    cos, sin = (random(num_tokens, head_dim, dtype=dtype, seed=seed) for seed in (1, 2))
    slots = torch.randperm(80, generator=torch.Generator().manual_seed(5))[:num_tokens].to(DEVICE)
    slots[1] = -1
    results = []
    for ops in (elementwise, elementwise_reference):
        keys, values = (torch.zeros(10, 8, num_kv_heads, head_dim, device=DEVICE).to(kept_in) for _ in range(2))
        scales = (
            torch.full((10, num_kv_heads, 8), 7.0, device=DEVICE),
            torch.full((10, num_kv_heads, 8), 7.0, device=DEVICE),
        )
        query = ops.norm_rope_and_store(qkv.clone(), cos, sin, None, None, EPS, slots, keys, values, scales)
        read = [dequantise(kept, of.transpose(1, 2), dtype) for kept, of in zip((keys, values), scales, strict=True)]
        results.append((query, *read, *scales))
    for got, want in zip(*results, strict=True):
        assert_same(got, want, bound)
    for scales in results[0][3:]:
        assert (scales == 7.0).sum().item() == (80 - (num_tokens - 1)) * num_kv_heads
        assert (scales == 0.0).sum().item() == num_kv_heads


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 16, 4096])
def test_the_shapes_of_a_real_model(num_tokens: int) -> None:
    """Qwen3-4B's, in bfloat16 as it runs."""
    bf16, hidden, heads, kv_heads, head_dim = torch.bfloat16, 2560, 32, 8, 128
    x, weight = random(num_tokens, hidden, dtype=bf16), random(hidden, dtype=bf16, seed=1)
    assert_same(elementwise.rms_norm(x, weight, EPS), elementwise_reference.rms_norm(x, weight, EPS))
    gate_up = random(num_tokens, 2 * 9728, dtype=bf16)
    assert_same(elementwise.silu_and_mul(gate_up), elementwise_reference.silu_and_mul(gate_up))
    qkv = random(num_tokens, (heads + 2 * kv_heads) * head_dim, dtype=bf16)
    cos, sin = (random(num_tokens, head_dim, dtype=bf16, seed=seed) for seed in (1, 2))
    norms = [random(head_dim, dtype=bf16, seed=seed) for seed in (3, 4)]
    slots = torch.arange(num_tokens, device=DEVICE)
    results = []
    for ops in (elementwise, elementwise_reference):
        keys, values = (torch.zeros(256, 32, kv_heads, head_dim, dtype=bf16, device=DEVICE) for _ in range(2))
        results.append((ops.norm_rope_and_store(qkv.clone(), cos, sin, *norms, EPS, slots, keys, values), keys, values))
    for got, want in zip(*results, strict=True):
        assert_same(got, want)


@pytest.mark.gpu
def test_offsets_beyond_two_to_the_31() -> None:
    """The last row of activations that a prompt in one chunk has."""
    num_tokens, size = 120_000, 9728
    x = torch.zeros(num_tokens, 2 * size, dtype=torch.bfloat16, device=DEVICE)
    x[-1] = 1.0
    assert_same(elementwise.silu_and_mul(x)[-1:], elementwise_reference.silu_and_mul(x[-1:]))
