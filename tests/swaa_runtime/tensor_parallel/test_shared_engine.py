"""An engine over two ranks gives what it gives alone, and what the oracle gives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from swaa_runtime.errors import EngineFailed
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import Request, SamplingParams
from swaa_runtime.tensor_parallel.ranks import Ranks
from tests.swaa_runtime.builders import (
    FakeClock,
    LinearCost,
    Rig,
    assert_equals_oracle,
    build_request,
    build_rig,
    engine_config,
    next_turn,
    random_tokens,
    write_adapter,
)
from tests.swaa_runtime.tensor_parallel.builders import CPU, CutInto, load_tiny, serve, shared_rig, whole_model

SLIDING = Recipe(window=12, sink_tokens=2)
TAIL = Recipe(window=12, sink_tokens=2, full_tail=5)
PAPER = Recipe(window=12, sink_tokens=2, full_layers="1::2", full_decode=True)
LOOKBACK = Recipe(window=6, sink_tokens=1, full_tail=4, full_decode=True, lookback_layers="1::2")
MIX = (Recipe(), SLIDING, TAIL, PAPER, LOOKBACK)


def mixed_requests() -> list[Request]:
    return [
        build_request(
            f"r{index}",
            random_tokens(15 + 20 * index, seed=index),
            recipe,
            sampling=SamplingParams(max_tokens=5, temperature=float(index == 3), seed=7),
        )
        for index, recipe in enumerate(MIX)
    ]


def run_mixed(rig: Rig) -> list[Request]:
    requests = [rig.add(request) for request in mixed_requests()]
    rig.run()
    return requests


@pytest.fixture
def llama(ranks: Ranks) -> Ranks:
    serve(ranks, partial(load_tiny, "llama"))
    return ranks


@pytest.fixture
def small_pieces(ranks: Ranks) -> Iterator[None]:
    """Rows are cut into up to three pieces of three rows or more."""
    group, before = ranks.group, CutInto(ranks.group.num_pieces, ranks.group.piece_rows)
    for cut in (CutInto(3, 3), before):
        ranks.order(cut)
        cut.apply(group)
        if cut is not before:
            yield


def assert_same(rig: Rig, family: str, requests: list[Request]) -> None:
    """As one process computes them, and as the oracle does."""
    alone = build_rig(whole_model(family), engine_config(max_step_tokens=21))
    for request, single in zip(requests, run_mixed(alone), strict=True):
        assert request.token_ids == single.token_ids
        difference = rig.runner.recorded(request) - alone.runner.recorded(single)
        assert difference.abs().max().item() <= 1e-5
        assert_equals_oracle(rig, whole_model(family), request)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_mixed_recipes_give_what_one_process_and_the_oracle_give(ranks: Ranks, family: str) -> None:
    serve(ranks, partial(load_tiny, family))
    rig = shared_rig(ranks)
    assert_same(rig, family, run_mixed(rig))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.usefixtures("small_pieces")
def test_rows_in_pieces_whose_sums_overlap_give_the_same(ranks: Ranks, family: str) -> None:
    serve(ranks, partial(load_tiny, family))
    assert [part.stop - part.start for part in ranks.group.pieces(21)] == [7, 7, 7]
    rig = shared_rig(ranks, fused=True)
    assert_same(rig, family, run_mixed(rig))


def test_no_step_of_several_ranks_is_interrupted(llama: Ranks) -> None:
    """They obey whole batches: who comes is in the next step as ever."""
    rig = shared_rig(llama, engine_config(max_step_tokens=64, interrupt_tokens=16))
    requests = [rig.add(build_request(name, length, TAIL)) for name, length in (("long", 100), ("short", 10))]
    while rig.engine.has_work:
        rig.engine.step(lambda: pytest.fail("it was interrupted"))
    for request in requests:
        assert_equals_oracle(rig, whole_model("llama"), request)


@pytest.mark.parametrize("recipe", [TAIL, PAPER])
def test_a_session_goes_on_whether_its_turns_ran_on_one_rank_or_two(llama: Ranks, recipe: Recipe) -> None:
    """What is exported has all heads, however many ranks there were."""
    config = engine_config(max_step_tokens=21)

    def turn(rig: Rig) -> Request:
        request = rig.add(build_request("first", random_tokens(70), recipe, continues=True))
        rig.run()
        return request

    shared, alone = shared_rig(llama, config), build_rig(whole_model("llama"), config)
    firsts = turn(shared), turn(alone)
    states = shared.state("first"), alone.state("first")
    for ours, theirs in zip(states[0].slices, states[1].slices, strict=True):
        assert ours.key == theirs.key
        assert (ours.data - theirs.data).abs().max().item() <= 1e-5
    for rig, first, state in ((alone, firsts[0], states[0]), (shared, firsts[1], states[1])):
        second = rig.add(next_turn("second", first, random_tokens(9, seed=1)), state)
        rig.run()
        assert second.num_restored_tokens > 0
        assert_equals_oracle(rig, whole_model("llama"), second)


@pytest.mark.parametrize("recipe", [Recipe(), LOOKBACK])
def test_a_preempted_request_comes_back_on_both_ranks(llama: Ranks, recipe: Recipe) -> None:
    clock = FakeClock()
    rig = shared_rig(llama, engine_config(max_step_tokens=16, max_running=1), clock=clock)
    rig.engine.set_cost(LinearCost())
    victim = rig.add(build_request("victim", 60, recipe))
    while victim.num_computed_tokens < 48:
        rig.step()
    urgent = rig.add(build_request("urgent", 5, ttft_due_s=clock.now_s + 0.006))
    rig.run()
    assert rig.engine.usage().num_preemptions == 1
    for request in (victim, urgent):
        assert_equals_oracle(rig, whole_model("llama"), request)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.usefixtures("small_pieces")
def test_adapters_of_a_batch_give_what_they_give_alone(ranks: Ranks, tmp_path: Path, fused: bool) -> None:
    folders = {name: write_adapter(tmp_path / name, seed) for seed, name in enumerate(("one", "two"), start=1)}
    load = partial(load_tiny, "llama", adapters=folders)
    serve(ranks, load)
    config = engine_config(max_step_tokens=21)
    rigs = shared_rig(ranks, config, fused), build_rig(load(CPU), config)
    one, two = (ranks.loaded.adapters.ids[name] for name in folders)
    recipes = [TAIL, Recipe(window=12, adapter=one), Recipe(adapter=two), SLIDING]
    found = []
    for rig in rigs:
        found.append([rig.add(build_request(f"r{at}", 30 + at, recipe)) for at, recipe in enumerate(recipes)])
        rig.run()
    for ours, theirs in zip(*found, strict=True):
        assert ours.token_ids == theirs.token_ids
        difference = rigs[0].runner.recorded(ours) - rigs[1].runner.recorded(theirs)
        assert difference.abs().max().item() <= 1e-5


def test_a_killed_rank_ends_the_engine_at_once(ranks: Ranks) -> None:
    """The last here: others would have to start new ones."""
    (worker,) = ranks._processes
    rig = shared_rig(ranks)
    rig.add(build_request("r", 400))
    rig.step()
    worker.kill()
    began_s = time.monotonic()
    with pytest.raises(EngineFailed, match=r"rank 1 of 2 ended \(exit code -9\)"):
        rig.run()
    for ask in (rig.runner.check, rig.engine.step):
        with pytest.raises(EngineFailed):
            ask()
    ranks.close()
    assert time.monotonic() - began_s < 10
