"""Finds the variants of the kernels that Hopper would need, where there need be no GPU: nothing is compiled or run.

Prints a line of JSON: for each kernel how many variants the warm-up makes, and how many random steps make beyond them.

In a process of its own: see `hopper`.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from functools import cache
from typing import Any

import pytest
import torch
from torch.nn import functional
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import JITFunction, create_function_from_signature

from swaa_runtime import decode_graphs
from swaa_runtime.attention import paged_triton
from swaa_runtime.attention.backend import ChunkView
from swaa_runtime.attention.prefix import PiecewisePrefix
from swaa_runtime.decode_graphs import DecodeGraphs
from swaa_runtime.kernels import overlap
from swaa_runtime.kv_cache.storage import KVStorage
from swaa_runtime.model.attention import ATTENTION_NAME
from swaa_runtime.model.fused import fused_decoder
from swaa_runtime.model.loader import wrap_model
from swaa_runtime.recipe import Recipe
from swaa_runtime.visibility import Turn
from tests.swaa_runtime.builders import build_transformer, tiny_config

CPU, HOPPER = torch.device("cpu"), CUDABackend(GPUTarget("cuda", 90, 32))
NUM_LAYERS, BLOCK, MAX_STEP, MAX_TOKENS = 3, 64, 300, 4096
RECIPES = (
    Recipe(),
    Recipe(window=256, sink_tokens=4),
    Recipe(window=100, full_layers="1::2", full_tail=33),
    Recipe(window=64, full_decode=True),
)


class Variants:
    """In place of Triton's launches: by kernel, the keys that Triton tells variants apart by."""

    def __init__(self) -> None:
        self.found: dict[str, set[str]] = defaultdict(set)

    def launch(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **known: Any) -> None:
        _, *key = bound(kernel)(*args, debug=False, **known)
        self.found[kernel.fn.__name__].add(str(key))


@cache
def bound(kernel: Any) -> Any:
    """What Triton calls before each launch: arguments -> values, kinds of these, options."""
    return create_function_from_signature(kernel.signature, kernel.params, HOPPER)


def as_on_hopper(variants: Variants, patch: pytest.MonkeyPatch) -> None:
    """Launch, and choose what to launch, as there."""
    gpu, num_splits = torch.device("cuda"), paged_triton.num_splits

    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return x.new_empty(*x.shape[:-1], weight.shape[0])

    patch.setattr(JITFunction, "run", lambda kernel, *args, **options: variants.launch(kernel, *args, **options))
    patch.setattr(functional, "linear", product)  # what torch would multiply is not looked at either
    for module in (paged_triton, decode_graphs):
        patch.setattr(module, "num_splits", lambda programs, device, *wanted: num_splits(programs, gpu, *wanted))
    patch.setattr(overlap, "can_overlap", lambda device: True)


def random_chunks(rng: random.Random) -> list[ChunkView]:
    """One to five, of a prompt's beginning, middle or end, or generated tokens."""
    chunks: list[ChunkView] = []
    row = 0
    for _ in range(rng.randint(1, 5)):
        count = rng.choice([1, 1, 2, 5, 16, rng.randint(1, MAX_STEP)])
        start = rng.choice([0, rng.randint(0, MAX_TOKENS - count)])
        turns = (Turn(0, rng.choice([max(1, start), start + count, MAX_TOKENS])),)
        tables = [[0] * (MAX_TOKENS // BLOCK)] * NUM_LAYERS
        rules = rng.choice(RECIPES).resolve(NUM_LAYERS)
        chunks.append(ChunkView(row, start, start + count, rules, turns, tables))
        row += count
    return chunks


def main() -> None:
    """Of a small model with its K and V as they are, and in 8 bits."""
    loaded = wrap_model(
        build_transformer(tiny_config("qwen3", NUM_LAYERS, 8, 2, 64), ATTENTION_NAME, torch.bfloat16), "variants"
    )
    shape, prefix, rng = loaded.shape, PiecewisePrefix("torch"), random.Random(0)
    variants = Variants()
    as_on_hopper(variants, pytest.MonkeyPatch())
    decoder = fused_decoder(loaded.model)
    storages = [KVStorage(2, BLOCK, 2, 64, torch.bfloat16, CPU, kv_dtype) for kv_dtype in ("model", "int8")]
    for storage in storages:
        decoder.warm_up(storage, MAX_STEP)
        paged_triton.warm_up(storage, shape, prefix, decoder.query_row, MAX_STEP, MAX_TOKENS)
    warm = {name: len(keys) for name, keys in variants.found.items()}
    for storage in storages:
        DecodeGraphs(decoder, loaded.model.lm_head, storage, shape, 8, MAX_TOKENS).capture_all()
        for _ in range(200):
            chunks = random_chunks(rng)
            tokens = torch.zeros(chunks[-1].row + chunks[-1].stop - chunks[-1].start, dtype=torch.int64)
            context = paged_triton.TritonContext(
                storage, shape, prefix, chunks, tokens.new_zeros(NUM_LAYERS, len(tokens))
            )
            rows = rng.choice([None, tokens[: len(chunks)]])
            decoder.forward(tokens, tokens, context, rows)
    print(json.dumps({name: (warm[name], len(keys) - warm[name]) for name, keys in variants.found.items()}))


if __name__ == "__main__":
    main()
