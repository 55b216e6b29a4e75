"""Choosing layers: what the scores say is what is chosen."""

from __future__ import annotations

import pytest
import torch

from services.quality.layers import Scorer, greedy, lazy_ratio, leave_one_out, swap, with_layers
from services.quality.packing import DenseKernel, PackedMasks, pack
from swaa_runtime.attention.oracle import visibility_mask
from swaa_runtime.errors import InvalidRequest
from swaa_runtime.recipe import LayerRule, Recipe
from tests.services.quality.builders import example
from tests.swaa_runtime.builders import tiny_model

BASE = Recipe(window=4, sink_tokens=1, full_decode=True, full_tail=2)
WORTH = (0.1, 0.9, 0.0, 0.5)


def nll(recipe: Recipe) -> float:
    """Layers 1 and 3 matter; 0 helps a little; beside 1, layer 3 is worth nothing."""
    chosen = {int(layer) for layer in recipe.lookback_layers or ()}
    worth = sum(value for layer, value in enumerate(WORTH) if layer in chosen)
    return 2.0 - worth + (0.45 if {1, 3} <= chosen else 0.0)


def quiet(done: int, total: int) -> None:
    assert 1 <= done <= total


def test_leave_one_out_orders_by_what_is_lost() -> None:
    choice = leave_one_out(nll, BASE, "lookback", 4, quiet)
    assert choice.order == (1, 0, 3, 2)
    assert choice.figures == pytest.approx({0: 0.1, 1: 0.45, 2: 0.0, 3: 0.05})
    assert choice.top(2) == (0, 1)


def test_greedy_sees_what_layers_are_worth_beside_each_other() -> None:
    choice = greedy(nll, BASE, "lookback", range(4), 2, quiet)
    assert choice.order == (1, 0)
    assert greedy(nll, BASE, "lookback", (2, 3), 5, quiet).order == (3, 2)
    assert greedy(nll, BASE, "lookback", range(4), 1, quiet, start=(3,)).order == (3, 1)


def test_swaps_only_ever_improve() -> None:
    worse = swap(nll, BASE, "lookback", (2, 3), 4, rounds=3)
    assert nll(with_layers(BASE, "lookback", worse.order)) < nll(with_layers(BASE, "lookback", (2, 3)))
    assert set(swap(nll, BASE, "lookback", (0, 1), 4, rounds=3).order) == {0, 1}


def test_layers_are_full_or_look_back() -> None:
    assert with_layers(BASE, "full", (2, 0)).full_layers == (0, 2)
    assert with_layers(BASE, "lookback", (2, 0)).lookback_layers == (0, 2)
    with pytest.raises(InvalidRequest, match="full_decode or full_tail"):
        with_layers(Recipe(window=4), "lookback", (1,))


def test_scores_of_a_real_model_find_all_layers_full_as_good_as_full_attention() -> None:
    packs = [PackedMasks(pack([example(20, 3, seed=1), example(15, 2, seed=2)], 48), DenseKernel())]
    score = Scorer(tiny_model().model, packs, 3)
    assert score(with_layers(BASE, "full", range(3))) == pytest.approx(score(Recipe()), abs=1e-5)
    assert len(score.each(BASE)) == 2
    assert score(BASE) == pytest.approx(sum(score.each(BASE)) / 2)


def test_lazy_ratio_is_the_mass_on_sinks_and_window_of_the_last_prompt_queries() -> None:
    part = example(30, 4, seed=3)
    packs = [PackedMasks(pack([example(9, 2), part], 64), DenseKernel())]
    alone = [PackedMasks(pack([part], 40), DenseKernel())]
    model = tiny_model().model
    wide = Recipe(window=1000)
    assert lazy_ratio(model, alone, wide, 3, quiet).figures == pytest.approx({0: 0.0, 1: 0.0, 2: 0.0}, abs=1e-6)
    figures = lazy_ratio(model, alone, BASE, 3, quiet).figures
    assert all(0.0 < value < 1.0 for value in figures.values())
    mixed = lazy_ratio(model, packs, BASE, 3, quiet)
    assert sorted(mixed.order) == [0, 1, 2]
    with pytest.raises(InvalidRequest, match="window"):
        lazy_ratio(model, alone, Recipe(), 3, quiet)
    seen = visibility_mask(LayerRule(), part.turns, 0, 30)
    near = visibility_mask(LayerRule(4, 1), part.turns, 0, 30)
    assert torch.equal(alone[0].rows(LayerRule(4, 1), torch.arange(30))[:, :30], near & seen)
