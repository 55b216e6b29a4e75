from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa_runtime.attention.dense import Partial, dense_attention, dense_attention_math, merge

IMPLEMENTATIONS = [dense_attention, dense_attention_math]


def qkv(queries: int, keys: int, tiles: int = 1, heads: int = 4, kv_heads: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(queries * 1000 + keys)
    query = torch.randn(tiles, heads, queries, 8, generator=generator)
    key, value = torch.randn(2, tiles, kv_heads, keys, 8, generator=generator)
    return query, key, value


def softmax_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> Partial:
    """Textbook attention in float64 with repeated KV heads."""
    group = query.shape[1] // key.shape[1]
    key, value = (kv.double().repeat_interleave(group, dim=1) for kv in (key, value))
    scores = (query.double() @ key.transpose(-1, -2) * 0.25).masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ value).float(), scores.logsumexp(-1).float()


@pytest.mark.parametrize("attend", IMPLEMENTATIONS)
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 40), (7, 3), (33, 200), (130, 140)])
def test_a_rectangle(attend: Callable[..., Partial], queries: int, keys: int) -> None:
    query, key, value = qkv(queries, keys, tiles=2)
    got = attend(query, key, value, 0.25)
    torch.testing.assert_close(got, softmax_attention(query, key, value, torch.ones(queries, keys, dtype=torch.bool)))
    assert got[1].dtype == torch.float32


@pytest.mark.parametrize("attend", IMPLEMENTATIONS)
@pytest.mark.parametrize("count", [1, 2, 65, 200])
def test_a_triangle(attend: Callable[..., Partial], count: int) -> None:
    query, key, value = qkv(count, count)
    mask = torch.ones(count, count, dtype=torch.bool).tril()
    got = attend(query, key, value, 0.25, causal=True)
    torch.testing.assert_close(got, softmax_attention(query, key, value, mask))


@pytest.mark.parametrize("attend", IMPLEMENTATIONS)
def test_a_bias_masks(attend: Callable[..., Partial]) -> None:
    query, key, value = qkv(20, 30, tiles=3)
    mask = torch.rand(20, 30, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[:, 7] = True
    bias = torch.zeros(20, 30).masked_fill(~mask, -torch.inf)
    got = attend(query, key, value, 0.25, bias=bias)
    torch.testing.assert_close(got, softmax_attention(query, key, value, mask))


@pytest.mark.parametrize("attend", IMPLEMENTATIONS)
def test_in_bfloat16_the_log_sum_exp_stays_float32(attend: Callable[..., Partial]) -> None:
    query, key, value = qkv(9, 50)
    out, lse = attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), 0.25)
    want = softmax_attention(query.bfloat16(), key.bfloat16(), value.bfloat16(), torch.ones(9, 50, dtype=torch.bool))
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    assert ((out.float() - want[0]).norm() / want[0].norm()).item() < 1e-2
    torch.testing.assert_close(lse, want[1], atol=1e-2, rtol=0)


@settings(max_examples=60)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 9), st.sampled_from([0.0, 30.0, -30.0]))
def test_disjoint_ranges_merge_exactly(first: int, second: int, queries: int, shift: float) -> None:
    """Also where one range holds all of the weight (`shift` moves its scores)."""
    query, key, value = qkv(queries, first + second)
    key[:, :, :first] += shift * query.mean() / query.pow(2).mean()
    parts = [
        dense_attention(query, key[:, :, span], value[:, :, span], 0.25)
        for span in (slice(0, first), slice(first, first + second))
    ]
    whole, _ = softmax_attention(query, key, value, torch.ones(queries, first + second, dtype=torch.bool))
    torch.testing.assert_close(merge(parts[0], parts[1]), whole, atol=2e-6, rtol=1e-5)


def test_merging_takes_all_from_the_range_that_has_all_the_weight() -> None:
    one, two = torch.full((1, 1, 1, 2), 1.0), torch.full((1, 1, 1, 2), 2.0)
    low, high = torch.full((1, 1, 1), -200.0), torch.full((1, 1, 1), 200.0)
    assert torch.equal(merge((one, high), (two, low)), one)
    assert torch.equal(merge((one, low), (two, high)), two)
    assert torch.equal(merge((one, high), (two, high)), torch.full_like(one, 1.5))


@pytest.mark.gpu
@pytest.mark.parametrize(("queries", "keys", "causal"), [(1, 300, False), (64, 300, False), (200, 200, True)])
def test_flash_attention_on_a_gpu_is_the_written_out_one(queries: int, keys: int, causal: bool) -> None:
    torch.manual_seed(0)
    query = torch.randn(1, 9, queries, 64, dtype=torch.bfloat16, device="cuda")
    key, value = torch.randn(2, 1, 3, keys, 64, dtype=torch.bfloat16, device="cuda")
    out, lse = dense_attention(query, key, value, 0.125, causal=causal)
    want, want_lse = dense_attention_math(query.float(), key.float(), value.float(), 0.125, causal=causal)
    assert float((out.float() - want).norm() / want.norm()) < 1e-2
    assert float((lse - want_lse).abs().max()) < 1e-2
