"""What `bench_gpu` times, held to the oracle on fresh random data first."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch

from swaa_runtime.attention.backend import ChunkView
from swaa_runtime.attention.oracle import OracleContext, oracle_attention
from swaa_runtime.attention.paged_triton import TritonContext
from swaa_runtime.attention.prefix import make_prefix_attention
from swaa_runtime.batch import ScheduledChunk, build_batch
from swaa_runtime.config import EngineConfig
from swaa_runtime.kv_cache.manager import KVCacheManager
from swaa_runtime.kv_cache.storage import KVStorage
from swaa_runtime.model.loader import LoadedModel, torch_dtype
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import Request, SamplingParams, new_request
from swaa_runtime.runner import ModelRunner
from swaa_runtime.shape import ModelShape
from swaa_runtime.visibility import Turn

ATTENTION_BOUND = 1e-2
"""Relative error of attention in bfloat16, as DESIGN §3 has it."""

ROUNDING_BOUND = 1.25
"""Our logits' error may be so many times that of transformers' own layers in bfloat16."""

QUERIES = 48
"""Of a chunk so many are compared, in runs of a few: the oracle takes float32 scores of each."""


def check_attention(
    shape: ModelShape, recipes: Mapping[str, Recipe], num_tokens: int, chunk: int, size: int, device: torch.device
) -> dict[str, float]:
    """Largest relative error of a prompt's last chunk and of a generated token, by recipe.

    Raises:
        AssertionError: if one is above the bound, or no number.
    """
    errors = {}
    blocks = -(-(num_tokens + 1) // size)
    storage = KVStorage(blocks + 1, size, shape.num_kv_heads, shape.head_dim, torch_dtype(shape.dtype), device)
    prefix = make_prefix_attention("auto", shape, device)
    for name, recipe in recipes.items():
        storage.keys.normal_()
        storage.values.normal_()
        table = (torch.randperm(blocks) + 1).tolist()
        key, value = (kv.transpose(0, 1) for kv in storage.gather(table, 0, num_tokens + 1))
        turns = (Turn(0, num_tokens),)
        worst = 0.0
        for rule in set(recipe.resolve(shape.num_layers)):
            for start, stop in ((num_tokens - chunk, num_tokens), (num_tokens, num_tokens + 1)):
                slots = torch.zeros((1, stop - start), dtype=torch.int64, device=device)
                view = ChunkView(0, start, stop, [rule], turns, [table])
                context = TritonContext(storage, shape, prefix, [view], slots)
                query = torch.randn(
                    (stop - start, shape.num_heads, shape.head_dim), device=device, dtype=storage.keys.dtype
                )
                out = context.attend_stored(0, query, shape.head_dim**-0.5)
                for at in {0, stop - start - 1, *torch.randint(stop - start, (QUERIES,)).tolist()}:
                    seen = start + at + 1
                    rows = query[at : at + 1].transpose(0, 1)
                    want = oracle_attention(
                        rows, key[:, :seen], value[:, :seen], rule, turns, seen - 1, shape.head_dim**-0.5
                    )
                    error = float((out[at : at + 1].float() - want.float()).norm() / want.float().norm())
                    worst = max(worst, error) if error == error else float("nan")  # NaN stays
        assert worst < ATTENTION_BOUND, f"attention of {name} is off by {worst}"
        errors[f"attention {name}"] = worst
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
