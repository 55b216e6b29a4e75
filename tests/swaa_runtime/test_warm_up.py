"""After the warm-up of a runner no request waits for a compiler, nor for a plan of cuDNN's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from triton import JITFunction

from swaa_runtime.attention import prefix
from swaa_runtime.attention.dense import Partial, dense_attention
from swaa_runtime.config import EngineConfig, KVDtypeName
from swaa_runtime.engine import Engine
from swaa_runtime.kernels import elementwise, paged_attention, skinny
from swaa_runtime.model.attention import ATTENTION_NAME
from swaa_runtime.model.loader import wrap_model
from swaa_runtime.outputs import Finished, Output
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import SamplingParams
from swaa_runtime.runner import ModelRunner
from tests.swaa_runtime.builders import LetterDecoder, build_request, build_transformer, random_tokens, tiny_config

NUM_LAYERS = 3
RECIPES = (
    Recipe(),
    Recipe(window=512, sink_tokens=10, full_layers="1::2", full_decode=True),
    Recipe(window=300, sink_tokens=64, full_tail=65, full_decode=True, lookback_layers=(0,)),
    Recipe(window=256),
)
PROMPTS = (4732, 1, 17, 2047, 130, 5555, 3, 1025, 700, 66, 3072, 2)
"""Odd ones, long and short, that come one after the other and are computed beside each other."""


def num_compiled() -> dict[str, int]:
    """Variants that there are by now, by kernel."""
    found = {}
    for module in (elementwise, paged_attention, skinny):
        for name, kernel in vars(module).items():
            if isinstance(kernel, JITFunction):
                found[f"{module.__name__}.{name}"] = sum(
                    len(variants) for variants, *_ in kernel.device_caches.values()
                )
    return found


@contextmanager
def planned(module: ModuleType = prefix) -> Iterator[set[Any]]:
    """What cuDNN is asked to make plans for meanwhile: sizes and strides."""
    plans: set[Any] = set()

    def recorded(query: torch.Tensor, key: torch.Tensor, *rest: Any, causal: bool = False) -> Partial:
        plans.add((query.shape, query.stride(), key.shape, key.stride(), causal))
        return dense_attention(query, key, *rest, causal=causal)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "dense_attention", recorded)
        yield plans


def run_everything(engine: Engine) -> list[Output]:
    """Requests of all recipes, each a few steps after the one before: one to eight decode beside others' prompts."""
    outputs: list[Output] = []

    def between_layers() -> None:
        outputs.extend(engine.interrupt())

    for index, prompt in enumerate(PROMPTS):
        recipe, tokens = RECIPES[index % len(RECIPES)], random_tokens(prompt, seed=index)
        sampling = SamplingParams(max_tokens=9 + 5 * index, ignore_eos=True)
        engine.add(build_request(f"r{index}", tokens, recipe, NUM_LAYERS, sampling))
        for _ in range(3):
            outputs += engine.step(between_layers)
    while engine.has_work:
        outputs += engine.step(between_layers)
    return outputs


@pytest.mark.gpu
@pytest.mark.parametrize("kv_dtype", ["model", "int8", "fp8"])
@pytest.mark.parametrize("family", ["qwen3", "llama", "qwen3_moe"])
def test_no_request_waits_for_a_compiler_after_the_warm_up(family: str, kv_dtype: KVDtypeName) -> None:
    """The second family's layers have no norms per head; the third's run through transformers' code."""
    model = build_transformer(tiny_config(family, NUM_LAYERS, 8, 2, 64), ATTENTION_NAME, torch.bfloat16).to("cuda")
    config = EngineConfig(
        num_blocks=4000,
        max_model_tokens=8192,
        block_size_tokens=64,
        max_step_tokens=4096,
        max_running=8,
        attention_backend="triton",
        dense_attention="cudnn",
        kv_dtype=kv_dtype,
    )
    runner = ModelRunner(wrap_model(model, family), config)
    before = runner.part.keys.clone(), runner.part.values.clone()
    with planned() as warm:
        runner.warm_up()
    for kept, was in zip((runner.part.keys, runner.part.values), before, strict=True):
        assert torch.equal(kept.view(torch.uint8), was.view(torch.uint8)), "memory stays as it is"
    compiled = num_compiled()
    assert compiled[f"{paged_attention.__name__}._attend_kernel"] > 0
    engine = Engine(runner, config, LetterDecoder(), ())
    with planned() as later:
        outputs = run_everything(engine)
    assert sum(isinstance(out, Finished) for out in outputs) == len(PROMPTS)
    assert num_compiled() == compiled
    assert later, "some of the prompts are long enough for cuDNN"
    assert later <= warm
