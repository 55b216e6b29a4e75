"""A prompt's newest queries over everything up to themselves: each way is the written out one, and chosen rightly."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa_runtime.attention import prefix
from swaa_runtime.attention.dense import Partial, dense_attention_math
from swaa_runtime.attention.prefix import (
    FLASH_VERSIONS,
    FlashPrefix,
    PiecewisePrefix,
    find_flash,
    make_prefix_attention,
    pieces,
)
from swaa_runtime.errors import ModelNotSupported
from swaa_runtime.shape import ModelShape

SCALE = 0.35
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def model_shape(head_dim: int = 16, dtype: str = "bfloat16") -> ModelShape:
    return ModelShape(2, 6, 2, head_dim, 64, 1 << 20, dtype)


def qkv(
    queries: int, keys: int, head_dim: int = 16, device: torch.device = CPU
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries as they come: a view, whose rows are further apart than they are long."""
    generator = torch.Generator().manual_seed(queries * 1000 + keys)
    step = torch.randn(queries, 6 + 4, head_dim, generator=generator).to(device)
    key, value = torch.randn(2, keys, 2, head_dim, generator=generator).to(device)
    return step[:, :6], key, value


def written_out(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """[n, num_heads, head_dim] in float32."""
    position = torch.arange(len(key) - len(query), len(key), device=key.device)
    future = torch.arange(len(key), device=key.device) > position[:, None]
    bias = torch.zeros(future.shape, device=key.device).masked_fill(future, -torch.inf)
    rows = [tensor.float().transpose(0, 1).unsqueeze(0) for tensor in (query, key, value)]
    return dense_attention_math(rows[0], rows[1], rows[2], SCALE, bias=bias)[0][0].transpose(0, 1)


class FakeFlash:
    """A flash_attn_func: what of its interface all versions agree on, and no more. Keeps the calls' arguments."""

    def __init__(self, as_tuple: bool = False) -> None:
        self.calls: list[dict[str, Any]] = []
        self._as_tuple = as_tuple

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        softmax_scale: float | None = None,
        causal: bool = False,
    ) -> Any:
        self.calls.append({"q": q.shape, "k": k.shape, "v": v.shape, "softmax_scale": softmax_scale, "causal": causal})
        assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        (one,), (key,), (value,) = q, k, v
        out = written_out(one, key, value).to(q.dtype).unsqueeze(0)
        return (out, None) if self._as_tuple else out


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(0, 100))
def test_pieces_are_the_written_out_one(queries: int, past: int) -> None:
    inputs = qkv(queries, past + queries)
    got = PiecewisePrefix("torch").attend(*inputs, SCALE)
    torch.testing.assert_close(got, written_out(*inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("as_tuple", [False, True], ids=["out", "out and log-sum-exp"])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 5), (7, 40)])
def test_flash_attention_is_one_call(queries: int, keys: int, as_tuple: bool) -> None:
    inputs, function = qkv(queries, keys), FakeFlash(as_tuple)
    got = FlashPrefix("flash", function).attend(*inputs, SCALE)
    torch.testing.assert_close(got, written_out(*inputs))
    assert function.calls == [
        {"q": (1, queries, 6, 16), "k": (1, keys, 2, 16), "v": (1, keys, 2, 16), "softmax_scale": SCALE, "causal": True}
    ]


@given(st.integers(0, 1 << 20))
def test_tokens_are_cut_into_few_pieces_of_few_sizes(num_tokens: int) -> None:
    edges = pieces(num_tokens)
    sizes = [high - low for low, high in pairwise(edges)]
    assert (edges[0], edges[-1]) == (0, num_tokens)
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) - len(set(sizes)) == max(0, num_tokens // prefix.MAX_PIECE - 1)
    assert all(size & (size - 1) == 0 and size <= prefix.MAX_PIECE for size in sizes)


class Plans:
    """In place of `dense_attention`: what cuDNN would make a plan for."""

    def __init__(self) -> None:
        self.keys: set[Any] = set()

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, *, causal: bool = False
    ) -> Partial:
        assert (value.shape, value.stride()) == (key.shape, key.stride())
        self.keys.add((query.shape, query.stride(), key.shape, key.stride(), causal))
        return torch.zeros(query.shape), torch.zeros(query.shape[:3])


@settings(max_examples=100)
@given(st.integers(1, 90), st.integers(1, 300), st.data())
def test_nothing_of_up_to_so_many_queries_and_keys_needs_a_plan_after_the_warm_up(
    most_queries: int, most_keys: int, data: st.DataObject
) -> None:
    most_queries = min(most_queries, most_keys)
    warm, later = Plans(), Plans()
    cudnn = PiecewisePrefix("cudnn", 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix, "MAX_PIECE", 64)
        patch.setattr(prefix, "dense_attention", warm)
        query, key, value = qkv(most_keys, most_keys)
        cudnn.warm_up(query[:most_queries], key, value, SCALE)
        if most_queries < 8:
            assert not warm.keys
            return
        queries = 8 * data.draw(st.integers(1, most_queries // 8), label="queries")
        past = 8 * data.draw(st.integers(0, (most_keys - queries) // 8), label="past")
        patch.setattr(prefix, "dense_attention", later)
        out = cudnn.attend(query[past : past + queries], key[: past + queries], value[: past + queries], SCALE)
    assert out.shape == (queries, 6, 16)
    assert later.keys <= warm.keys
    assert len(warm.keys) <= 4 * (4 + 1)


def test_torchs_own_has_nothing_to_prepare(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = Plans()
    monkeypatch.setattr(prefix, "dense_attention", plans)
    PiecewisePrefix("torch", 1).warm_up(*qkv(40, 40), SCALE)
    assert not plans.keys


# What is chosen.


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes these modules of flash-attn importable, and no others; each may lack its function."""

    def install(names: Sequence[str], bare: Sequence[str] = ()) -> None:
        for version in FLASH_VERSIONS:
            monkeypatch.setitem(sys.modules, version.module, None)
        for name in (*names, *bare):
            module = ModuleType(name)
            if name in names:
                module.flash_attn_func = FakeFlash()  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, name, module)

    return install


@pytest.mark.parametrize(
    ("modules", "architecture", "name"),
    [
        (["flash_attn_interface", "flash_attn.cute", "flash_attn"], 9, "flash-attn-3"),
        (["flash_attn.cute", "flash_attn"], 9, "flash-attn-4"),
        (["flash_attn_interface", "flash_attn.cute"], 10, "flash-attn-4"),
        (["flash_attn"], 8, "flash-attn-2"),
        (["flash_attn"], 9, None),
        (["flash_attn"], None, "flash-attn-2"),
        ([], None, None),
    ],
)
def test_the_fastest_version_for_an_architecture(
    installed: Callable[..., None], modules: list[str], architecture: int | None, name: str | None
) -> None:
    installed(modules)
    found = find_flash(architecture)
    assert (found and found.name) == name


def test_the_folder_of_version_4_is_not_taken_for_version_2(installed: Callable[..., None]) -> None:
    installed(["flash_attn.cute"], bare=["flash_attn"])
    found = find_flash(None)
    assert found is not None
    assert found.name == "flash-attn-4"
    installed([], bare=["flash_attn"])
    assert find_flash(None) is None


def test_a_version_that_cannot_be_imported_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(name: str) -> ModuleType:
        raise ImportError("undefined symbol: _ZN3c10")

    monkeypatch.setattr(prefix, "import_module", broken)
    with caplog.at_level(logging.WARNING):
        assert find_flash(None) is None
    assert "flash-attn-3 is installed but cannot be imported: undefined symbol: _ZN3c10" in caplog.text


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_float32_and_cpus_have_torchs_own(installed: Callable[..., None], device: torch.device) -> None:
    installed(["flash_attn"])
    dtype = "float32" if device is CUDA else "bfloat16"
    assert make_prefix_attention("auto", model_shape(dtype=dtype), device).name == "torch"
    for choice in ("flash", "cudnn"):
        with pytest.raises(ModelNotSupported, match="needs a CUDA device and bfloat16 or float16"):
            make_prefix_attention(choice, model_shape(dtype=dtype), device)


def test_cudnn_is_taken_where_it_is_asked_for(installed: Callable[..., None]) -> None:
    installed(["flash_attn"])
    attention = make_prefix_attention("cudnn", model_shape(), CUDA)
    assert (attention.name, attention.query_multiple) == ("cudnn", 1024)


def test_flash_attention_that_is_asked_for_and_missing_is_an_error(installed: Callable[..., None]) -> None:
    installed([])
    with pytest.raises(ModelNotSupported, match=r"none of flash_attn_interface, flash_attn.cute, flash_attn can be"):
        make_prefix_attention("flash", model_shape(), CUDA)


@pytest.mark.parametrize(("capability", "name"), [((9, 0), "cudnn"), ((8, 0), "flash-attn-2"), ((7, 5), "cudnn")])
def test_auto_takes_flash_attention_where_it_is_faster(
    installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str
) -> None:
    installed(["flash_attn"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert make_prefix_attention("auto", model_shape(), CUDA).name == name


def test_flash_attention_is_warmed_up_by_the_beginning_of_a_long_prompt() -> None:
    function = FakeFlash()
    FlashPrefix("flash", function).warm_up(*qkv(2 * prefix.WARM_TOKENS, 3 * prefix.WARM_TOKENS), SCALE)
    (call,) = function.calls
    assert call["q"] == (1, prefix.WARM_TOKENS, 6, 16)
    assert call["k"] == (1, 2 * prefix.WARM_TOKENS, 2, 16)


@pytest.mark.gpu
@pytest.mark.parametrize("choice", ["cudnn", "flash"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_on_a_gpu_it_is_the_written_out_one(choice: Any, head_dim: int) -> None:
    if choice == "flash" and find_flash(None) is None:
        pytest.skip("no flash-attn")
    attention = make_prefix_attention(choice, model_shape(head_dim), CUDA)
    for queries, keys in ((512, 512), (130, 3000), (1024, 5000), (3072, 8192)):
        inputs = [tensor.bfloat16() for tensor in qkv(queries, keys, head_dim, CUDA)]
        out = attention.attend(inputs[0], inputs[1], inputs[2], SCALE)
        want = written_out(inputs[0], inputs[1], inputs[2])
        assert float((out.float() - want).norm() / want.norm()) < 1e-2
