"""The central property: however a sequence is chunked, batched, paged, split into turns and evicted, every position has
the logits of dense attention over the whole sequence (DESIGN §3), to 1e-5 in float32.

All memory that is not held by a live request is NaN in these tests (see `build_rig`).
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa_runtime.config import AttentionBackendName, EngineConfig
from swaa_runtime.kv_cache.manager import layer_block_bound
from swaa_runtime.model.loader import LoadedModel
from swaa_runtime.outputs import Checkpoint
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import Request, SamplingParams
from tests.swaa_runtime.builders import (
    FAMILIES,
    Rig,
    State,
    assert_equals_oracle,
    build_request,
    build_rig,
    engine_config,
    next_turn,
    random_tokens,
    tiny_model,
)
from tests.swaa_runtime.strategies import recipes

BACKENDS: tuple[AttentionBackendName, ...] = ("windowed", "reference")
PROMPTS = st.one_of(st.integers(1, 60), st.sampled_from([1, 8, 140]))
"""The longest are more than two of the largest blocks, and than all steps but the largest."""
MORE = st.integers(1, 40)


@st.composite
def models(draw: st.DrawFn) -> LoadedModel:
    """Random tiny Llama and Qwen3 models with grouped, single and as many KV heads as heads."""
    num_heads, num_kv_heads = draw(st.sampled_from([(4, 2), (6, 2), (3, 1), (2, 2)]))
    return tiny_model(draw(st.sampled_from(["llama", "qwen3"])), draw(st.integers(2, 6)), num_heads, num_kv_heads)


@st.composite
def configs(draw: st.DrawFn) -> EngineConfig:
    block_size_tokens = draw(st.sampled_from([1, 2, 3, 8, 16, 64]))
    return engine_config(
        num_blocks=9000 // block_size_tokens + 200,  # enough for all; more would only take time to fill
        block_size_tokens=block_size_tokens,
        max_step_tokens=draw(st.sampled_from([4, 7, 16, 33, 130, 300])),
        max_running=draw(st.integers(1, 4)),
        attention_backend=draw(st.sampled_from(BACKENDS)),
    )


@dataclass(frozen=True)
class Plan:
    """A request of a batch: what it asks, and the step before which it arrives."""

    prompt: int
    recipe: Recipe
    max_tokens: int
    temperature: float
    arrival_step: int

    def request(self, index: int, num_layers: int, continues: bool = False) -> Request:
        return build_request(
            f"r{index}",
            random_tokens(self.prompt, seed=index),
            self.recipe,
            num_layers,
            SamplingParams(max_tokens=self.max_tokens, temperature=self.temperature, seed=index),
            continues=continues,
        )


def plans(num_layers: int) -> st.SearchStrategy[Plan]:
    return st.builds(
        Plan,
        prompt=PROMPTS,
        recipe=recipes(num_layers),
        max_tokens=st.integers(1, 5),
        temperature=st.sampled_from([0.0, 1.5]),
        arrival_step=st.sampled_from([0, 0, 1, 3]),
    )


def assert_within_bounds(rig: Rig) -> None:
    """No purely sliding layer holds more than its bound."""
    config = rig.engine.config
    for request in rig.requests.values():
        for rule, table in zip(request.rules, request.block_tables, strict=False):
            if rule.window is not None and not rule.looks_back:
                bound = layer_block_bound(rule, config.block_size_tokens, config.max_step_tokens)
                assert sum(1 for block in table if block) <= bound


def run_arriving(rig: Rig, arrivals: list[tuple[int, Request]]) -> None:
    """Step until all have ended, adding each request before its step."""
    step = 0
    while rig.engine.has_work or any(at >= step for at, _ in arrivals):
        for at, request in arrivals:
            if at == step:
                rig.add(request)
        rig.step()
        assert_within_bounds(rig)
        step += 1


@settings(max_examples=80)
@given(st.data())
def test_every_position_of_every_batch_equals_the_oracle(data: st.DataObject) -> None:
    loaded = data.draw(models(), label="model")
    num_layers = loaded.shape.num_layers
    rig = build_rig(loaded, data.draw(configs(), label="config"))
    chosen = data.draw(st.lists(plans(num_layers), min_size=1, max_size=4), label="plans")
    requests = [plan.request(index, num_layers) for index, plan in enumerate(chosen)]
    run_arriving(rig, [(plan.arrival_step, request) for plan, request in zip(chosen, requests, strict=True)])
    for request in requests:
        assert_equals_oracle(rig, loaded, request)
    assert rig.engine.manager.pool.num_used_blocks == 0


@settings(max_examples=80)
@given(st.data())
def test_every_position_of_a_session_equals_the_oracle(data: st.DataObject) -> None:
    """Two sessions of up to three turns, each turn on a new engine, restored or recomputed from tokens and turns.

    A state may be computed up to some token while the rest is loaded, and arrives slice by slice, or not to its end.
    """
    loaded = data.draw(models(), label="model")
    num_layers = loaded.shape.num_layers
    first = data.draw(st.lists(plans(num_layers), min_size=2, max_size=2), label="plans")
    requests = [plan.request(index, num_layers, continues=True) for index, plan in enumerate(first)]
    states: list[State | None] = [None, None]
    num_turns = data.draw(st.integers(2, 3), label="turns")
    for turn in range(num_turns):
        rig = build_rig(loaded, data.draw(configs(), label="config"))
        for request, state in zip(requests, states, strict=True):
            request.checkpoint_tokens = data.draw(st.sampled_from([0, 5, 32]), label="checkpoint")
            add_and_restore(rig, request, state, data)
        rig.run()
        for request in requests:
            assert_equals_oracle(rig, loaded, request)
        if turn == num_turns - 1:
            break
        for index, request in enumerate(requests):
            state = rig.state(request.request_id)
            states[index] = state if data.draw(st.booleans(), label="restore") else None
            prompt = random_tokens(data.draw(MORE, label="prompt"), seed=turn)
            continues = turn < num_turns - 2 or data.draw(st.booleans(), label="continues")
            requests[index] = next_turn(request.request_id, request, prompt, continues=continues)


def add_and_restore(rig: Rig, request: Request, state: State | None, data: st.DataObject) -> None:
    """Queue a request and bring its state over some steps; now and then only half of it."""
    if state is None:
        rig.add(request)
        return
    compute_stop = data.draw(st.integers(0, state.num_tokens - 1), label="compute_stop")
    rig.add(request, state, compute_stop=compute_stop, place=False)
    parts = data.draw(st.permutations(state.from_token(compute_stop, request.rules)), label="order")
    arrives = data.draw(st.sampled_from([True, True, False]), label="arrives")
    for part in parts if arrives else parts[: len(parts) // 2]:
        rig.engine.place(request.request_id, [part])
        if data.draw(st.booleans(), label="step"):
            rig.step()
    if not arrives:
        rig.engine.abandon_restore(request.request_id)
    rig.run()
    assert request.num_restored_tokens == (state.num_tokens - compute_stop if arrives else 0)


@settings(max_examples=60)
@given(st.data())
def test_a_parked_state_goes_on_as_if_it_were_one_request(data: st.DataObject) -> None:
    loaded = data.draw(models(), label="model")
    num_layers = loaded.shape.num_layers
    rig = build_rig(loaded, data.draw(configs(), label="config"))
    request = data.draw(plans(num_layers), label="plan").request(0, num_layers, continues=True)
    rig.add(request)
    rig.run()
    for turn in range(1, 4):
        previous = request
        prompt = random_tokens(data.draw(MORE, label="prompt"), seed=turn)
        request = next_turn(f"r{turn}", previous, prompt, continues=True)
        assert rig.resume(request, previous.request_id)
        rig.run()
        assert request.num_restored_tokens == len(previous.token_ids) - 1
        assert_equals_oracle(rig, loaded, request)
        assert previous.request_id not in rig.engine.parked


@settings(max_examples=60)
@given(st.data())
def test_a_checkpoint_is_a_state_of_any_prompt_with_the_same_start(data: st.DataObject) -> None:
    loaded = data.draw(models(), label="model")
    num_layers = loaded.shape.num_layers
    plan = data.draw(plans(num_layers), label="plan")
    config = data.draw(configs(), label="config")
    first, second = build_rig(loaded, config), build_rig(loaded, data.draw(configs(), label="other config"))
    request = plan.request(0, num_layers, continues=True)
    request.checkpoint_tokens = every = data.draw(st.sampled_from([3, 16, 40]), label="checkpoint")
    first.add(request)
    while first.engine.has_work:
        for out in first.step():
            if isinstance(out, Checkpoint):
                first.engine.confirm_saved(out.request_id, out.state.keys)
    assert_equals_oracle(first, loaded, request)
    checkpoints = first.checkpoints("r0")
    last = plan.prompt - max(1, plan.recipe.full_tail)
    assert [state.num_tokens for state in checkpoints] == list(range(every, last + 1, every))
    for index, state in enumerate(checkpoints[-2:]):
        tail = random_tokens(data.draw(st.integers(max(1, plan.recipe.full_tail), 60), label="tail"), seed=7)
        prompt = [*request.token_ids[: state.num_tokens], *tail]
        other = build_request(f"other{index}", prompt, plan.recipe, num_layers, continues=True)
        second.add(other, state)
        second.run()
        assert other.num_restored_tokens == state.num_tokens
        assert_equals_oracle(second, loaded, other)


RECIPES = {
    "full": Recipe(),
    "sliding": Recipe(window=20, sink_tokens=3),
    "paper": Recipe(window=20, sink_tokens=3, full_layers="1::2", full_decode=True),
    "tail": Recipe(window=20, sink_tokens=3, full_tail=9, lookback_layers=(0, 2)),
    "window of one": Recipe(window=1),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_each_model_family(family: str, recipe: Recipe) -> None:
    loaded = tiny_model(family)
    rig = build_rig(loaded, engine_config(block_size_tokens=16, max_step_tokens=200))
    requests = [
        rig.add(build_request(f"r{length}", length, recipe, sampling=SamplingParams(max_tokens=5)))
        for length in (1, 60, 400)
    ]
    rig.run()
    for request in requests:
        assert_equals_oracle(rig, loaded, request)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block_sizes", [(8, 16), (16, 5)])
def test_sessions_under_a_window_of_one_do_not_meet_in_the_null_block(
    backend: AttentionBackendName, block_sizes: tuple[int, int]
) -> None:
    loaded = tiny_model()
    recipe = Recipe(window=1)
    first, second = (
        build_rig(loaded, engine_config(block_size_tokens=size, attention_backend=backend)) for size in block_sizes
    )
    requests = [first.add(build_request(f"r{n}", n, recipe, continues=True)) for n in (17, 18)]
    first.run()
    later = [
        second.add(next_turn(r.request_id, r, random_tokens(2, seed=5)), first.state(r.request_id)) for r in requests
    ]
    second.run()
    for request in later:
        assert_equals_oracle(second, loaded, request)
