"""The differentiable forward: its mask is the rule's, and its logits are the engine's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

from services.quality.examples import Example
from services.quality.flex import FlexKernel, range_mask
from services.quality.forward import answer_logits, answer_nll, mean_nll
from services.quality.packing import (
    DenseKernel,
    PackedContext,
    PackedMasks,
    pack,
    plan_packs,
    visible_ranges,
)
from swaa_runtime.attention.oracle import visibility_mask
from swaa_runtime.errors import InvalidRequest
from swaa_runtime.recipe import LayerRule, Recipe
from swaa_runtime.request import SamplingParams, new_request
from tests.services.quality.builders import example
from tests.swaa_runtime.builders import (
    assert_equals_oracle,
    build_rig,
    next_turn,
    random_tokens,
    tiny_model,
)
from tests.swaa_runtime.strategies import layer_rules, recipes

examples = st.lists(
    st.lists(st.integers(1, 12), min_size=2, max_size=5).map(lambda lengths: example(*lengths)), min_size=1, max_size=3
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(examples, layer_rules())
def test_packed_mask_is_each_examples_own(parts: list[Example], rule: LayerRule) -> None:
    total = sum(len(part.token_ids) for part in parts)
    batch = pack(parts, total + 3)
    want = torch.zeros(total + 3, total + 3, dtype=torch.bool)
    for part, first in zip(parts, batch.first_rows, strict=True):
        stop = first + len(part.token_ids)
        want[first:stop, first:stop] = visibility_mask(rule, part.turns, 0, len(part.token_ids))
    for row in range(total, total + 3):
        want[row, row] = True
    ranges = visible_ranges(batch, rule)
    assert torch.equal(ranges.mask(), want)
    assert torch.equal(create_mask(range_mask(ranges), None, None, total + 3, total + 3, device="cpu")[0, 0], want)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(recipes(3), st.lists(st.integers(1, 40), min_size=2, max_size=4), st.integers(0, 9))
def test_logits_are_the_engines_on_the_same_tokens(recipe: Recipe, lengths: list[int], seed: int) -> None:
    """Whatever the engine generates, the packed forward finds as likely, beside another example in the row."""
    loaded = tiny_model()
    rig = build_rig(loaded)
    sampling = SamplingParams(max_tokens=5)
    request = rig.add(new_request("r0", random_tokens(lengths[0], seed), recipe, 3, sampling))
    rig.run()
    for number, length in enumerate(lengths[1:], start=1):
        request = rig.add(next_turn(f"r{number}", request, random_tokens(length, seed + number), max_tokens=5))
        rig.run()
    assert_equals_oracle(rig, loaded, request)
    labels = [False] * len(request.token_ids)
    for turn in request.turns:
        stop = len(labels) if turn.stop is None else turn.stop
        labels[turn.generated_start : stop] = [True] * (stop - turn.generated_start)
    batch = pack([example(9, 2), Example.from_labels(request.token_ids, labels)], 300)
    context = PackedContext(PackedMasks(batch, DenseKernel()), recipe.resolve(3))
    with torch.no_grad():
        got = answer_logits(loaded.model, batch, context)[batch.target_examples == 1]
    rows = batch.target_rows[batch.target_examples == 1] - batch.first_rows[1]
    want = rig.runner.recorded(request)[rows]
    assert (got - want).abs().max().item() <= 1e-5
    last = got[-5:].argmax(-1).tolist()
    assert last == request.token_ids[-5:], "greedy answers are the likeliest tokens"


def test_packing_does_not_change_what_an_example_costs() -> None:
    parts = [example(20, 4, 5, 3, seed=1), example(9, 2, seed=2), example(30, 6, 2, seed=3)]
    rules = Recipe(window=6, sink_tokens=2, full_decode=True, full_tail=3, lookback_layers=(1,)).resolve(3)
    model = tiny_model().model
    together = mean_nll(model, [PackedMasks(pack(parts, 100), DenseKernel())], rules)
    apart = [mean_nll(model, [PackedMasks(pack([part], 40), DenseKernel())], rules)[0] for part in parts]
    assert together == pytest.approx(apart, abs=1e-5)


def test_the_forward_has_gradients_through_attention() -> None:
    batch = pack([example(12, 3)], 16)
    rules = Recipe(window=4, sink_tokens=1, full_decode=True).resolve(3)
    query = torch.randn(4, 16, 8, requires_grad=True)
    key, value = torch.randn(2, 16, 8, requires_grad=True), torch.randn(2, 16, 8, requires_grad=True)
    out = PackedContext(PackedMasks(batch, DenseKernel()), rules).attend(0, query, key, value, 0.3)
    gradients = torch.autograd.grad(out.square().sum(), (query, key, value))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert answer_nll(tiny_model().model, batch, PackedContext(PackedMasks(batch, DenseKernel()), rules)).shape == (3,)


def test_packs_take_examples_in_order_and_refuse_what_is_too_long() -> None:
    assert plan_packs([4, 3, 5, 2], [2, 0, 1, 3], 9) == [[2, 0], [1, 3]]
    with pytest.raises(InvalidRequest, match="12 tokens"):
        plan_packs([12], [0], 9)
    with pytest.raises(InvalidRequest, match="must fit"):
        pack([example(5, 5)], 9)


@pytest.mark.gpu
def test_flex_attention_is_the_dense_one() -> None:
    parts = [example(300, 20, 40, 9, seed=1), example(150, 7, seed=2)]
    batch = pack(parts, 640, "cuda")
    for rule in (LayerRule(), LayerRule(20, 4, True, 8), LayerRule(1)):
        shapes = ((4, 640, 16), (2, 640, 16), (2, 640, 16))
        query, key, value = (torch.randn(shape, device="cuda", requires_grad=True) for shape in shapes)
        outs, grads = [], []
        for kernel in (DenseKernel(), FlexKernel()):
            out = PackedContext(PackedMasks(batch, kernel), [rule]).attend(0, query, key, value, 0.25)
            outs.append(out)
            grads.append(torch.autograd.grad(out.square().sum(), (query, key, value)))
        assert (outs[0] - outs[1]).abs().max().item() < 2e-3
        for first, second in zip(*grads, strict=True):
            assert (first - second).norm().item() < 1e-2 * first.norm().item() + 1e-3
