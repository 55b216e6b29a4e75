"""Steps that only decode give the oracle's logits, whoever had their rows before.

Through the engine, with all memory NaN that no live request holds, on plain twins of the kernels. Where there is CUDA
the same tests run kernels and graphs.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from swaa_runtime import decode_graphs
from swaa_runtime.attention import paged_triton
from swaa_runtime.attention.backend import ChunkView
from swaa_runtime.attention.paged_triton import TritonContext
from swaa_runtime.attention.prefix import PiecewisePrefix
from swaa_runtime.batch import Batch, ScheduledChunk, build_batch
from swaa_runtime.config import EngineConfig, KVDtypeName
from swaa_runtime.decode_graphs import DecodeGraphs, bucket
from swaa_runtime.kernels import elementwise, elementwise_reference, skinny
from swaa_runtime.kv_cache.manager import KVCacheManager
from swaa_runtime.model.attention import ATTENTION_NAME
from swaa_runtime.model.fused import FusedDecoder
from swaa_runtime.model.layer_graphs import GraphedDecoder
from swaa_runtime.model.loader import LoadedModel, wrap_model
from swaa_runtime.outputs import TokenOutput
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import FinishReason, Request, SamplingParams
from swaa_runtime.runner import ModelRunner
from tests.swaa_runtime.builders import (
    NAN,
    FakeClock,
    LinearCost,
    RecordingRunner,
    Rig,
    assert_equals_oracle,
    build_request,
    build_rig,
    build_transformer,
    engine_config,
    next_turn,
    oracle_logits,
    random_tokens,
    tiny_config,
)
from tests.swaa_runtime.kernels import paged_reference
from tests.swaa_runtime.kernels.test_elementwise import DEVICE
from tests.swaa_runtime.strategies import recipes

LOOKBACK = Recipe(window=8, sink_tokens=2, full_tail=3, full_decode=True, lookback_layers=(0,))
SLIDING = Recipe(window=8, sink_tokens=2, full_layers="1::2")
RECIPES = (Recipe(), SLIDING, LOOKBACK, Recipe(window=1), Recipe(window=8, full_tail=5))


@pytest.fixture(autouse=True)
def plain_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where kernels would be interpreted, which takes a tenth of a second a layer."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(paged_triton, "paged_attention", paged_reference.paged_attention)
        monkeypatch.setattr(decode_graphs, "paged_attention", paged_reference.paged_attention)
        monkeypatch.setattr(skinny, "linear", functional.linear)


class RecordingGraphs(DecodeGraphs):
    """Graphs that keep the logits of what they run with their runner, and count blocks that they write to rows."""

    runner: GraphRunner
    num_steps = 0
    num_ahead = 0
    num_written = 0

    def run(self, batch: Batch) -> torch.Tensor:
        logits = super().run(batch)
        self._record(batch.chunks, logits)
        return logits

    def run_next(self, batch: Batch, token_ids: torch.Tensor) -> torch.Tensor:
        logits = super().run_next(batch, token_ids)
        self._record([replace(chunk, start=chunk.stop, stop=chunk.stop + 1) for chunk in batch.chunks], logits)
        self.num_ahead += 1
        return logits

    def _record(self, chunks: Sequence[ChunkView], logits: torch.Tensor) -> None:
        for chunk, row in zip(chunks, logits, strict=True):
            self.runner.record(chunk, row[None].clone())
        self.num_steps += 1

    def _update(self, index: int, chunk: ChunkView) -> Any:
        before = self._tables[:, index].clone()
        row = super()._update(index, chunk)
        self.num_written += int((self._tables[:, index] != before).any(0).sum())
        return row


class GraphRunner(RecordingRunner):
    """The runner of a GPU: fused decoder, planned launches, decoding apart."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        super().__init__(loaded, config)
        ops = elementwise if DEVICE.type == "cuda" else elementwise_reference  # whose calls a graph cannot record
        decoder = FusedDecoder(loaded.model, ops)
        self._decoder = GraphedDecoder(decoder, self.part, loaded.shape, config.max_step_tokens)
        self._contexts = partial(TritonContext, self.part, loaded.shape, PiecewisePrefix("torch"))
        self.graphs = RecordingGraphs(
            decoder, loaded.model.lm_head, self.part, loaded.shape, config.max_running, config.max_model_tokens
        )
        self.graphs.runner = self
        self._decode_steps = self.graphs


class LogitsRunner(RecordingRunner):
    """A runner as it is made for its backend, which keeps the logits that tokens are sampled from, by request."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        super().__init__(loaded, config)
        self.sampled: dict[int, list[torch.Tensor]] = {}
        self.num_graph_steps = 0

    def run(self, batch: Batch, between_layers: Callable[[], None] | None = None) -> torch.Tensor:
        logits = ModelRunner.run(self, batch, between_layers)
        for request, row in zip(batch.sampled, logits, strict=True):
            self.sampled.setdefault(id(request.turns), []).append(row.clone())
        self.num_graph_steps += self._decode_steps is not None and self._decode_steps.takes(batch)
        return logits

    def runs_ahead_of(self, batch: Batch) -> bool:
        """Never: all steps are to go through `run`."""
        return False

    def forward(
        self, batch: Batch, rows: torch.Tensor | None = None, between_layers: Callable[[], None] | None = None
    ) -> torch.Tensor:
        return ModelRunner.forward(self, batch, rows, between_layers)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """Its own, as fusing writes to it."""
    return wrap_model(build_transformer(tiny_config("llama", head_dim=16), ATTENTION_NAME).to(DEVICE), "graphs")


class GraphRig:
    """An engine that decodes by graphs."""

    def __init__(self, loaded: LoadedModel, **config: Any) -> None:
        self.loaded = loaded
        self.clock = FakeClock()
        settings = engine_config(**{"block_size_tokens": 16, "max_model_tokens": 256, "max_running": 4} | config)
        self.rig: Rig = build_rig(loaded, settings, clock=self.clock, make_runner=GraphRunner)
        runner = self.rig.runner
        assert isinstance(runner, GraphRunner)
        self.graphs = runner.graphs

    def add(self, name: str, prompt: int, recipe: Recipe, max_tokens: int = 4, **options: Any) -> Request:
        tokens = random_tokens(prompt, seed=len(self.rig.requests))
        return self.rig.add(
            build_request(name, tokens, recipe, sampling=SamplingParams(max_tokens=max_tokens), **options)
        )

    def check(self) -> None:
        """Run to the end; all logits are the oracle's."""
        self.rig.run()
        for request in self.rig.requests.values():
            assert_equals_oracle(self.rig, self.loaded, request, tolerance=5e-5)


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.integers(1, 50), recipes(3, 30), st.integers(1, 20), st.integers(0, 12)), min_size=1, max_size=6
    )
)
def test_requests_that_come_and_go_have_the_oracles_logits(
    loaded: LoadedModel, asked: list[tuple[int, Recipe, int, int]]
) -> None:
    """Rows change hands, have holes, and run beyond the ends of blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paged_triton, "SPLIT_QUERIES", 4)
        rig = GraphRig(loaded, max_step_tokens=24)
        for index, (prompt, recipe, max_tokens, steps) in enumerate(asked):
            rig.add(f"r{index}", prompt, recipe, max_tokens)
            for _ in range(steps):
                rig.rig.step()
        rig.check()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_prompt_that_ends_in_a_chunk_of_one_token_is_prefilled(loaded: LoadedModel, recipe: Recipe) -> None:
    """What its last token sees is a prompt's, not a generated one's."""
    rig = GraphRig(loaded, max_step_tokens=19, max_running=1)
    rig.add("r", 39, recipe)
    rig.add("one", 1, recipe)
    rig.check()
    assert rig.graphs.num_steps == 6


def test_a_row_is_taken_over_and_only_new_blocks_are_written(loaded: LoadedModel) -> None:
    rig = GraphRig(loaded)
    rig.add("first", 40, LOOKBACK, max_tokens=20)
    rig.add("second", 20, SLIDING, max_tokens=3)
    while rig.graphs.num_steps < 5:
        rig.rig.step()
    assert rig.graphs.num_written == 3 + 2
    rig.add("third", 17, Recipe(), max_tokens=5)
    rig.check()
    assert rig.graphs.num_written == 3 + 2 + 1 + 2, "a block that the first enters, and those of the third"


def test_rows_that_stay_move_down_when_fewer_run(loaded: LoadedModel) -> None:
    """So that one request does not run as four."""
    rig = GraphRig(loaded)
    for index in range(3):
        rig.add(f"r{index}", 18, RECIPES[index], max_tokens=3)
    last = rig.add("last", 18, LOOKBACK, max_tokens=20)
    while last.num_generated_tokens < 10:
        rig.rig.step()
    sizes: list[int] = []
    replay = rig.graphs._replay

    def sized(num_rows: int) -> torch.Tensor:
        sizes.append(num_rows)
        return replay(num_rows)

    rig.graphs._replay = sized  # type: ignore[method-assign]
    rig.check()
    assert set(sizes) == {1}


def test_a_request_that_waits_for_its_reader_finds_its_way_back(loaded: LoadedModel) -> None:
    rig = GraphRig(loaded)
    for name in ("slow", "quick"):
        rig.add(name, 30, SLIDING, max_tokens=30)
    while rig.graphs.num_steps < 3:
        rig.rig.step()
    rig.rig.engine.set_paused("slow", True)
    rig.add("new", 5, LOOKBACK, max_tokens=12)
    for _ in range(15):
        rig.rig.step()
    rig.rig.engine.set_paused("slow", False)
    rig.check()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_preempted_request_enters_again(loaded: LoadedModel, recipe: Recipe) -> None:
    rig = GraphRig(loaded, max_running=1)
    rig.rig.engine.set_cost(LinearCost())
    victim = rig.add("victim", 30, recipe, max_tokens=12)
    while victim.num_generated_tokens < 5:
        rig.rig.step()
    rig.add("urgent", 5, recipe, 2, ttft_due_s=rig.clock.now_s + 0.006)
    rig.check()
    assert victim.num_preemptions == 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_next_turn_takes_over_the_tables_of_the_one_before(loaded: LoadedModel, recipe: Recipe) -> None:
    rig = GraphRig(loaded)
    first = rig.add("first", 20, recipe, max_tokens=6, continues=True)
    rig.rig.run()
    second = next_turn("second", first, random_tokens(9), max_tokens=8)
    assert rig.rig.resume(second, "first")
    rig.check()


# Steps that are run ahead of the tokens they take.


class WaitingRunner(GraphRunner):
    """One that runs nothing ahead."""

    def runs_ahead_of(self, batch: Batch) -> bool:
        return False


def test_requests_that_only_decode_run_ahead_but_for_their_first_and_last(loaded: LoadedModel) -> None:
    """Also into blocks that they have not entered yet, and no step is run in vain."""
    rig = GraphRig(loaded, max_step_tokens=64)
    for at, recipe in enumerate(RECIPES[:3]):
        rig.add(f"r{at}", 13 + at, recipe, max_tokens=20)
    rig.check()
    assert rig.graphs.num_steps == 19
    assert rig.graphs.num_ahead == 18


STEPS = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 30), recipes(3, 30), st.integers(1, 25), st.sampled_from([0.0, 1.5])),
    st.tuples(st.just("cancel"), st.integers(0, 5)),
    st.tuples(st.just("pause"), st.integers(0, 5)),
    st.tuples(st.just("go on"), st.integers(0, 5)),
    st.tuples(st.just("run"), st.integers(1, 8)),
)


@settings(max_examples=25)
@given(st.lists(STEPS, min_size=2, max_size=12))
def test_running_ahead_changes_no_token(loaded: LoadedModel, script: list[tuple[Any, ...]]) -> None:
    """Whoever ends, leaves, waits or joins meanwhile."""
    found = []
    for make_runner in (GraphRunner, WaitingRunner):
        settings = engine_config(block_size_tokens=16, max_model_tokens=256, max_running=4)
        rig = build_rig(loaded, settings, eos_token_ids=range(4), make_runner=make_runner)
        for at, (what, *details) in enumerate(script):
            name = f"r{details[0] % max(1, len(rig.requests))}"
            if what == "add":
                prompt, recipe, max_tokens, temperature = details
                sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=at, logprobs=1)
                tokens = random_tokens(prompt, seed=at)
                rig.add(build_request(f"r{len(rig.requests)}", tokens, recipe, sampling=sampling))
            elif what == "cancel":
                rig.engine.cancel(name)
            elif what == "run":
                for _ in range(details[0]):
                    rig.step()
            else:
                rig.engine.set_paused(name, what == "pause")
        for name in rig.requests:
            rig.engine.set_paused(name, False)
        rig.run()
        logprobs = [output.logprob for output in rig.outputs if isinstance(output, TokenOutput)]
        requests = rig.requests.values()
        found.append((logprobs, [(request.token_ids, request.finish_reason) for request in requests]))
    assert found[0] == found[1]


def test_a_token_that_is_forced_is_not_what_was_run_ahead(loaded: LoadedModel) -> None:
    rig = GraphRig(loaded)
    request = rig.add("r", 20, SLIDING, max_tokens=12)
    while request.num_generated_tokens < 4:
        rig.rig.step()
    assert rig.graphs.num_ahead
    request.forced_token_id = (request.token_ids[-1] + 1) % 60
    forced = request.forced_token_id
    rig.check()
    assert request.token_ids[20 + 4] == forced


def test_logits_that_are_no_numbers_end_their_own_request_alone(loaded: LoadedModel) -> None:
    """Though the step after them has been asked for."""
    rig = GraphRig(loaded)
    broken = rig.add("broken", 20, SLIDING, max_tokens=12)
    other = rig.add("other", 25, LOOKBACK, max_tokens=12)
    while broken.num_generated_tokens < 4:
        rig.rig.step()
    block = broken.block_tables[0][20 // 16]
    rig.rig.runner.storage.fill([block], NAN)
    rig.rig.run()
    assert broken.finish_reason is FinishReason.NOT_A_NUMBER
    assert other.num_generated_tokens == 12
    assert_equals_oracle(rig.rig, loaded, other, tolerance=5e-5)


@pytest.mark.parametrize("kv_dtype", ["model", "int8"])
@settings(max_examples=10)
@given(
    asked=st.lists(st.tuples(st.integers(1, 16), recipes(3, 30), st.integers(1, 6)), min_size=1, max_size=5),
    recipe=recipes(3, 30),
    every=st.integers(1, 3),
)
def test_newcomers_between_the_layers_of_a_long_step_change_nothing(
    loaded: LoadedModel, kv_dtype: KVDtypeName, asked: list[tuple[int, Recipe, int]], recipe: Recipe, every: int
) -> None:
    """Its launches and theirs are planned apart, also of 8-bit KV; then all of them decode by graphs."""
    found: list[list[tuple[list[int], torch.Tensor]]] = []
    for interrupted in (False, True):
        rig = GraphRig(loaded, max_step_tokens=48, interrupt_tokens=16, attention_backend="triton", kv_dtype=kv_dtype)
        rig.add("long", 150, recipe)
        coming = [partial(rig.add, f"r{at}", *plan) for at, plan in enumerate(asked)]
        boundaries = 0

        def between_layers(rig: GraphRig = rig, coming: list[Any] = coming) -> None:
            nonlocal boundaries
            boundaries += 1
            if coming and boundaries % every == 0:
                coming.pop(0)()
            rig.rig.outputs += rig.rig.engine.interrupt()
            rig.rig.engine.check_integrity()

        if interrupted:
            while coming and rig.rig.engine.has_work:
                rig.rig.outputs += rig.rig.engine.step(between_layers)
        for add in coming:
            add()
        rig.rig.run()
        requests = rig.rig.requests.values()
        found.append([(request.token_ids, rig.rig.runner.recorded(request)) for request in requests])
    for (tokens, logits), (others_tokens, others_logits) in zip(*found, strict=True):
        assert tokens == others_tokens
        torch.testing.assert_close(logits, others_logits, atol=1e-4, rtol=1e-4)


# Layers that are skipped, where the tokens alone are of interest.


class SkippingRunner(LogitsRunner):
    """One that skips layers of which later tokens see nothing, on plain twins."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        super().__init__(loaded, config)
        self._decoder = FusedDecoder(loaded.model, elementwise_reference)
        self._contexts = partial(TritonContext, self.part, loaded.shape, PiecewisePrefix("torch"))


@settings(max_examples=60)
@given(st.data())
def test_what_is_sampled_needs_no_layer_that_is_skipped(loaded: LoadedModel, data: st.DataObject) -> None:
    """Over two turns, in chunks that end anywhere; of a skipped layer's memory nothing is read, as it is NaN."""
    sizes = [4, 16] if DEVICE.type == "cpu" else [16]  # what kernels take
    size = data.draw(st.sampled_from(sizes), label="block")
    config = engine_config(
        block_size_tokens=size, max_step_tokens=data.draw(st.sampled_from([5, 16, 33]), label="step")
    )
    rig = build_rig(loaded, replace(config, skip_unseen=True), make_runner=SkippingRunner)
    recipe = data.draw(recipes(3, 30), label="recipe")
    request = rig.add(build_request("r0", data.draw(st.integers(1, 100), label="prompt"), recipe, continues=True))
    rig.run()
    later = next_turn("r1", request, random_tokens(data.draw(st.integers(1, 80), label="next"), seed=1))
    assert rig.resume(later, "r0")
    rig.run()
    assert isinstance(rig.runner, SkippingRunner)
    for each in (request, later):
        got, want = torch.stack(rig.runner.sampled[id(each.turns)]), oracle_logits(loaded, each)
        torch.testing.assert_close(got, want[each.prompt_stop - 1 : -1], atol=5e-5, rtol=1e-5)


# What it takes, and what it does with rows of nobody.


class Pool:
    """Requests whose prompts have been computed by a runner, and memory for what they generate."""

    def __init__(self, loaded: LoadedModel, max_rows: int = 4, max_tokens: int = 64) -> None:
        config = engine_config(block_size_tokens=16, max_running=max_rows, max_model_tokens=max_tokens, num_blocks=200)
        self.runner = GraphRunner(loaded, config)
        self.runner.storage.fill(range(1, config.num_blocks), NAN)
        self.manager = KVCacheManager(config.num_blocks, 16, 64)

    def request(self, name: str, prompt: int, recipe: Recipe) -> Request:
        request = build_request(name, prompt, recipe)
        assert self.manager.reserve(request)
        self.runner.run(self.batch([request], prompt))
        self.advance(request, prompt)
        return request

    def batch(self, requests: list[Request], num_tokens: int = 1) -> Batch:
        for request in requests:
            self.manager.extend(request, request.num_computed_tokens + num_tokens)
        return build_batch([ScheduledChunk(request, num_tokens) for request in requests], 16)

    def advance(self, request: Request, num_tokens: int = 1) -> None:
        request.num_computed_tokens += num_tokens
        request.token_ids.append(7 * request.num_computed_tokens % 60)


def test_it_computes_what_a_forward_does_and_stores_the_same(loaded: LoadedModel) -> None:
    pool = Pool(loaded)
    requests = [pool.request(f"r{at}", 14 + 9 * at, recipe) for at, recipe in enumerate(RECIPES[:3])]
    for step in range(5):
        batch = pool.batch(requests if step != 2 else requests[::-2])
        storage = pool.runner.part
        before = storage.keys.clone(), storage.values.clone()
        rows = torch.arange(len(batch.chunks), device=DEVICE)
        want = pool.runner.logits(ModelRunner.forward(pool.runner, batch, rows))
        after = storage.keys.clone(), storage.values.clone()
        storage.keys.copy_(before[0])
        storage.values.copy_(before[1])
        assert pool.runner.graphs.takes(batch)
        got = pool.runner.graphs.run(batch)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
        for kv, stored in zip((storage.keys, storage.values), after, strict=True):
            torch.testing.assert_close(kv, stored, atol=1e-5, rtol=1e-5, equal_nan=True)
        for chunk_request in batch.sampled:
            pool.advance(chunk_request)


def test_it_takes_only_what_it_has_room_for(loaded: LoadedModel) -> None:
    pool = Pool(loaded, max_rows=2, max_tokens=32)
    requests = [pool.request(f"r{at}", length, Recipe()) for at, length in enumerate((20, 31, 32))]
    takes = pool.runner.graphs.takes
    assert takes(pool.batch(requests[:2]))
    assert not takes(pool.batch([requests[0], requests[2]])), "longer than the table"
    assert not takes(pool.batch(requests)), "more requests than rows"
    adapted = replace(pool.batch(requests[:1]), adapter_ranges={"lora": [range(1)]})
    assert not takes(adapted)


def test_it_takes_generated_tokens_only(loaded: LoadedModel) -> None:
    pool = Pool(loaded)
    decoding = pool.request("decoding", 20, Recipe())
    prompt = build_request("prompt", 3, Recipe())
    pool.manager.reserve(prompt)
    for num_tokens, sampled in ((1, 0), (1, 0), (1, 1)):
        pool.manager.extend(prompt, prompt.num_computed_tokens + num_tokens)
        batch = build_batch([ScheduledChunk(decoding, 1), ScheduledChunk(prompt, num_tokens)], 16)
        assert len(batch.sampled) == 1 + sampled
        assert not batch.only_decodes
        prompt.num_computed_tokens += num_tokens
    prompt.token_ids += [1, 2]
    assert not pool.batch([prompt], 2).only_decodes, "two of its tokens, made elsewhere"
    prompt.num_computed_tokens += 1
    assert pool.batch([prompt, decoding]).only_decodes


@pytest.mark.parametrize(
    ("num_rows", "max_rows", "rows"), [(1, 64, 1), (2, 64, 2), (3, 64, 4), (33, 64, 64), (33, 48, 48), (4, 4, 4)]
)
def test_buckets(num_rows: int, max_rows: int, rows: int) -> None:
    assert bucket(num_rows, max_rows) == rows


# The kernels themselves, and graphs.


@pytest.fixture
def on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo the twins."""
    monkeypatch.undo()


@pytest.mark.parametrize(("kv_dtype", "bound"), [("int8", 0.02), ("fp8", 0.1)])
@pytest.mark.parametrize("recipe", RECIPES[:3])
def test_with_8_bit_kv_logits_are_near_the_oracles_also_after_a_swap(
    loaded: LoadedModel, recipe: Recipe, kv_dtype: KVDtypeName, bound: float
) -> None:
    """A state that leaves the pool and comes back goes on as if it had stayed."""
    logits = []
    for swapped in (False, True):
        rig = GraphRig(loaded, max_running=1, attention_backend="triton", kv_dtype=kv_dtype)
        rig.rig.engine.set_cost(LinearCost())
        victim = rig.add("victim", 30, recipe, max_tokens=12)
        if swapped:
            while victim.num_generated_tokens < 5:
                rig.rig.step()
            rig.add("urgent", 5, recipe, 2, ttft_due_s=rig.clock.now_s + 0.006)
        rig.rig.run()
        assert victim.num_preemptions == swapped
        logits.append(rig.rig.runner.recorded(victim))
        want = oracle_logits(loaded, victim)[: len(logits[-1])]
        assert 1e-4 < ((logits[-1] - want).norm() / want.norm()).item() < bound
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)


def test_the_runner_of_the_triton_backend_decodes_by_its_kernels(on_triton: None) -> None:
    config = tiny_config("llama", num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16)
    loaded = wrap_model(build_transformer(config, ATTENTION_NAME).to(DEVICE), "kernels")
    settings = engine_config(block_size_tokens=16, max_running=2, attention_backend="triton", max_model_tokens=64)
    rig = build_rig(loaded, settings, make_runner=LogitsRunner)
    assert rig.runner.decoder_name == "fused"
    assert isinstance(rig.runner, LogitsRunner)
    requests = [
        rig.add(build_request(f"r{at}", prompt, LOOKBACK, 2, SamplingParams(max_tokens=3)))
        for at, prompt in enumerate((19, 3))
    ]
    rig.run()
    for request in requests:
        got, want = rig.runner.sampled[id(request.turns)], oracle_logits(loaded, request)
        torch.testing.assert_close(torch.stack(got), want[request.prompt_stop - 1 : -1], atol=5e-5, rtol=1e-5)
    assert rig.runner.num_graph_steps == 2


@pytest.mark.gpu
def test_no_garbage_is_collected_during_a_recording(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it happens to free, the graphs of a test before say, would end it."""
    found: list[bool] = []
    forward = DecodeGraphs._forward

    def observed(graphs: DecodeGraphs, num_rows: int) -> torch.Tensor:
        if torch.cuda.is_current_stream_capturing():
            found.append(gc.isenabled())
        return forward(graphs, num_rows)

    monkeypatch.setattr(DecodeGraphs, "_forward", observed)
    rig = GraphRig(loaded)
    rig.add("r", 20, SLIDING)
    rig.check()
    assert found == [False]
    assert gc.isenabled()
