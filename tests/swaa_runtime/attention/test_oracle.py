from __future__ import annotations

import pytest
import torch

from swaa_runtime.attention.oracle import OracleContext, oracle_attention, visibility_mask
from swaa_runtime.model.attention import ATTENTION_NAME
from swaa_runtime.recipe import LayerRule, Recipe
from swaa_runtime.visibility import Turn
from tests.swaa_runtime.builders import FAMILIES, VOCAB_SIZE, build_transformer, random_tokens, tiny_config

TURNS = (Turn(0, 6, 9), Turn(9, 12))


def test_each_row_of_the_mask_has_the_window_and_the_sinks() -> None:
    mask = visibility_mask(LayerRule(3, sink_tokens=2), (Turn(0, 99),), 20, 30)
    assert mask.shape == (10, 30)
    assert mask.sum(dim=1).tolist() == [5] * 10
    assert mask[0].nonzero().flatten().tolist() == [0, 1, 18, 19, 20]


def test_attention_written_out_key_by_key() -> None:
    """Against loops and exponentials: nothing of the tensor code is shared."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(4, 3, 5, generator=generator)
    key, value = torch.randn(2, 2, 9, 5, generator=generator)
    rule = LayerRule(2, sink_tokens=1)
    out = oracle_attention(query, key, value, rule, TURNS, start=6, scale=0.3)
    assert out.shape == (3, 4, 5)
    for head in range(4):
        for row, position in enumerate((6, 7, 8)):
            keys = [0, position - 1, position]
            scores = [float(query[head, row] @ key[head // 2, k]) * 0.3 for k in keys]
            weights = torch.tensor(scores).exp()
            want = sum(
                (w * value[head // 2, k] for w, k in zip(weights / weights.sum(), keys, strict=True)), torch.zeros(5)
            )
            torch.testing.assert_close(out[row, head], want)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_under_full_attention_it_is_what_transformers_computes_eagerly(family: str) -> None:
    config = tiny_config(family)
    ours, theirs = (build_transformer(config, attention) for attention in (ATTENTION_NAME, "eager"))
    theirs.load_state_dict(ours.state_dict())
    ids = torch.tensor([random_tokens(150)])
    context = OracleContext(Recipe().resolve(3), (Turn(0, 150),))
    got = ours(input_ids=ids, use_cache=False, swaa_context=context).logits
    want = theirs(input_ids=ids, use_cache=False).logits
    assert got.shape == (1, 150, VOCAB_SIZE)
    assert (got - want).abs().max().item() <= 1e-5


@torch.no_grad()
def test_under_a_window_it_is_what_transformers_computes_for_a_sliding_model() -> None:
    """transformers' own sliding Mistral has the same definition of the window: itself included."""
    config = tiny_config("mistral")
    ours = build_transformer(config, ATTENTION_NAME)
    config.sliding_window = 10
    theirs = build_transformer(config, "eager")
    theirs.load_state_dict(ours.state_dict())
    ids = torch.tensor([random_tokens(60)])
    context = OracleContext(Recipe(window=10).resolve(3), (Turn(0, 60),))
    got = ours(input_ids=ids, use_cache=False, swaa_context=context).logits
    want = theirs(input_ids=ids, use_cache=False).logits
    assert (got - want).abs().max().item() <= 1e-5
