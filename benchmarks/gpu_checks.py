"""What `bench_gpu` times, held to the oracle on fresh random data first."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from swaa_runtime.attention.backend import ChunkView
from swaa_runtime.attention.oracle import OracleContext, oracle_attention
from swaa_runtime.attention.paged_triton import TritonContext
from swaa_runtime.attention.prefix import make_prefix_attention
from swaa_runtime.batch import ScheduledChunk, build_batch
from swaa_runtime.config import EngineConfig, KVDtypeName
from swaa_runtime.kv_cache.manager import KVCacheManager
from swaa_runtime.kv_cache.storage import KVStorage, slot_ids
from swaa_runtime.model.loader import LoadedModel, torch_dtype
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import Request, SamplingParams, new_request
from swaa_runtime.runner import ModelRunner
from swaa_runtime.shape import ModelShape
from swaa_runtime.visibility import Turn

ATTENTION_BOUND = 1e-2
"""Relative error of attention in bfloat16, as DESIGN §3 has it."""

STORED_BOUND: dict[KVDtypeName, float] = {"model": 0.0, "int8": 2e-2, "fp8": 6e-2}
"""The same beside K and V as they were before 8 bits were made of them: random ones, with nothing that stands out."""

ROUNDING_BOUND = 1.25
"""Our logits' error may be so many times that of transformers' own layers in bfloat16."""

QUERIES = 48
"""Of a chunk so many are compared, in runs of a few: the oracle takes float32 scores of each."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's K and V of a sequence, in memory.

    Attributes:
        exact: each [num_kv_heads, n, head_dim], before they were kept in `storage`.
        read: the same as read from it.
    """

    storage: KVStorage
    table: list[int]
    exact: tuple[torch.Tensor, torch.Tensor]
    read: tuple[torch.Tensor, torch.Tensor]


def random_layer(shape: ModelShape, num_tokens: int, size: int, device: torch.device, kv_dtype: KVDtypeName) -> Layer:
    """In blocks of `size` tokens in random order."""
    blocks, dtype = -(-num_tokens // size), torch_dtype(shape.dtype)
    storage = KVStorage(blocks + 1, size, shape.num_kv_heads, shape.head_dim, dtype, device, kv_dtype)
    table = (torch.randperm(blocks) + 1).tolist()
    key, value = torch.randn((2, num_tokens, shape.num_kv_heads, shape.head_dim), device=device, dtype=dtype)
    storage.write(torch.from_numpy(slot_ids(table, 0, num_tokens, size)).to(device), key, value)
    read_key, read_value = (kv.transpose(0, 1) for kv in storage.gather(table, 0, num_tokens))
    return Layer(storage, table, (key.transpose(0, 1), value.transpose(0, 1)), (read_key, read_value))


def check_attention(
    shape: ModelShape,
    recipes: Mapping[str, Recipe],
    num_tokens: int,
    chunk: int,
    size: int,
    device: torch.device,
    kv_dtype: KVDtypeName = "model",
) -> dict[str, float]:
    """Largest relative error of a prompt's last chunk and of a generated token, by recipe.

    Of K and V in 8 bits there are two: beside the oracle on what is read from memory, and on what was stored.

    Raises:
        AssertionError: if one is above the bound, or no number.
    """
    errors = {}
    layer = random_layer(shape, num_tokens + 1, size, device, kv_dtype)
    turns, prefix, scale = (Turn(0, num_tokens),), make_prefix_attention("auto", shape, device), shape.head_dim**-0.5
    for name, recipe in recipes.items():
        worst = {"read": 0.0, "stored": 0.0}
        for rule in set(recipe.resolve(shape.num_layers)):
            for start, stop in ((num_tokens - chunk, num_tokens), (num_tokens, num_tokens + 1)):
                slots = torch.zeros((1, stop - start), dtype=torch.int64, device=device)
                view = ChunkView(0, start, stop, [rule], turns, [layer.table])
                context = TritonContext(layer.storage, shape, prefix, [view], slots)
                query = torch.randn(
                    (stop - start, shape.num_heads, shape.head_dim), device=device, dtype=layer.storage.dtype
                )
                out = context.attend_stored(0, query, scale)
                for at in {0, stop - start - 1, *torch.randint(stop - start, (QUERIES,)).tolist()}:
                    seen = start + at + 1
                    rows = query[at : at + 1].transpose(0, 1)
                    beside = (
                        {"read": layer.read} if kv_dtype == "model" else {"read": layer.read, "stored": layer.exact}
                    )
                    for what, (key, value) in beside.items():
                        want = oracle_attention(rows, key[:, :seen], value[:, :seen], rule, turns, seen - 1, scale)
                        error = float((out[at : at + 1].float() - want.float()).norm() / want.float().norm())
                        worst[what] = max(worst[what], error) if error == error else float("nan")  # NaN stays
        for what, error in worst.items():
            bound = ATTENTION_BOUND if what == "read" else STORED_BOUND[kv_dtype]
            assert error <= bound, f"attention of {name} is off by {error} with KV in {kv_dtype}, as {what}"
            if what == "read" or kv_dtype != "model":
                label = f"attention {name}" + ("" if kv_dtype == "model" else f", {kv_dtype} as {what}")
                errors[label] = error
    return errors


def check_tokens(
    loaded: LoadedModel,
    recipes: Mapping[str, Recipe],
    num_tokens: int,
    chunk: int,
    size: int,
    make_runner: Callable[[EngineConfig], ModelRunner] | None = None,
) -> dict[str, float]:
    """Relative error of the logits of one prompt and 3 generated tokens, by recipe, in chunks.

    The twin is transformers' own layers with the oracle's attention, in one forward and in float32. In bfloat16 these
    are off as well, by rounding alone: that error is the measure.

    Args:
        make_runner: of the same model; a ModelRunner if absent.

    Raises:
        AssertionError: if ours is clearly larger, or no number.
    """
    errors: dict[str, float] = {}
    twin = copy.deepcopy(loaded.model).float()
    config = EngineConfig(
        num_blocks=2 + loaded.shape.num_layers * (num_tokens // size + 2), max_model_tokens=num_tokens + 8,
        block_size_tokens=size, max_step_tokens=chunk, max_running=1, attention_backend="triton",
    )  # fmt: skip
    for name, recipe in recipes.items():
        runner = ModelRunner(loaded, config) if make_runner is None else make_runner(config)
        manager = KVCacheManager(config.num_blocks, size, chunk)
        tokens = torch.randint(3, loaded.shape.vocab_size, (num_tokens,)).tolist()
        request = new_request("check", tokens, recipe, loaded.shape.num_layers, SamplingParams(max_tokens=8))
        manager.reserve(request)
        logits: list[torch.Tensor] = []
        while len(logits) < 4:
            count = min(chunk, request.num_remaining_tokens)
            manager.extend(request, request.num_computed_tokens + count)
            out = runner.run(build_batch([ScheduledChunk(request, count)], size))
            request.num_computed_tokens += count
            if len(out):
                logits.append(out[0])
                request.token_ids.append(int(out[0].argmax()))
        ids = torch.tensor([request.token_ids[:-1]], device=runner.device)
        exact, rounded = (_oracle_logits(model, ids, request, num_tokens - 1) for model in (twin, loaded.model))
        ours, theirs = (float((got - exact).norm() / exact.norm()) for got in (torch.stack(logits), rounded))
        assert ours < ROUNDING_BOUND * theirs, f"logits of {name} are off by {ours}, transformers' by {theirs}"
        errors |= {f"logits {name}": ours, f"logits {name}, transformers": theirs}
    return errors


def _oracle_logits(model: Any, ids: torch.Tensor, request: Request, start: int) -> torch.Tensor:
    context = OracleContext(request.rules, request.turns)
    with torch.inference_mode():
        hidden = model.base_model(input_ids=ids, use_cache=False, swaa_context=context).last_hidden_state
        logits: torch.Tensor = model.get_output_embeddings()(hidden[0, start:]).float()
    return logits
