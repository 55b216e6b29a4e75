"""The batched evaluation against the engine, and its CUDA kernel against the one that is written out."""

from __future__ import annotations

import random

import pytest
import torch

from services.quality.batched import BatchGenerator, DenseKernel, FlashKernel
from swaa_runtime.outputs import Finished
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import SamplingParams, new_request
from tests.swaa_runtime.builders import VOCAB_SIZE, build_rig, tiny_model

RECIPES = (
    Recipe(),
    Recipe(window=5),
    Recipe(window=5, sink_tokens=3),
    Recipe(window=7, sink_tokens=12, full_decode=True),
    Recipe(window=6, sink_tokens=2, full_decode=True, full_tail=4, full_layers="1::2"),
    Recipe(window=4, sink_tokens=2, full_decode=True, full_tail=50, lookback_layers=(0,)),
    Recipe(window=4, sink_tokens=1, full_tail=3),
)
NEW_TOKENS = 8


def by_engine(prompts: list[list[int]], recipe: Recipe) -> list[list[int]]:
    loaded = tiny_model()
    rig = build_rig(loaded)
    for at, prompt in enumerate(prompts):
        sampling = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True)
        rig.add(new_request(str(at), prompt, recipe, loaded.shape.num_layers, sampling))
    rig.run()
    done = {out.request_id: out for out in rig.outputs if isinstance(out, Finished)}
    return [list(done[str(at)].token_ids[len(prompt) :]) for at, prompt in enumerate(prompts)]


def by_batch(prompts: list[list[int]], recipe: Recipe) -> list[list[int]]:
    loaded = tiny_model()
    generator = BatchGenerator(loaded, DenseKernel())
    state, token_ids = generator.start(prompts, recipe.resolve(loaded.shape.num_layers), NEW_TOKENS)
    answers = [[token_id] for token_id in token_ids]
    for _ in range(NEW_TOKENS - 1):
        token_ids = generator.step(state, token_ids)
        for answer, token_id in zip(answers, token_ids, strict=True):
            answer.append(token_id)
    return answers


@pytest.mark.parametrize("recipe", RECIPES)
def test_generates_what_the_engine_generates(recipe: Recipe) -> None:
    rng = random.Random(1)
    prompts = [[rng.randrange(VOCAB_SIZE) for _ in range(length)] for length in (9, 40, 23, 40, 31)]
    assert by_batch(prompts, recipe) == by_engine(prompts, recipe)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 1, 100])
@pytest.mark.parametrize("count", [1, 64, 300])
def test_flash_kernel_is_the_dense_one(window: int | None, count: int) -> None:
    torch.manual_seed(0)
    query = torch.randn(3, count, 9, 64, dtype=torch.bfloat16, device="cuda")
    key, value = (torch.randn(3, 300, 3, 64, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    stops = torch.tensor([300, 300, 300] if count == 300 else [64, 300, 211], dtype=torch.int32, device="cuda")
    out, lse = FlashKernel().attend(query, key, value, stops, window, 0.125)
    want, want_lse = DenseKernel().attend(query.float(), key.float(), value.float(), stops, window, 0.125)
    assert float((out.float() - want).norm() / want.norm()) < 1e-2
    assert float((lse - want_lse).abs().max()) < 1e-2
