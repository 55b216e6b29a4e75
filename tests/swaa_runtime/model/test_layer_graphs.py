"""Short steps through the buffers that graphs read compute what the decoder does. On a GPU the graphs do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from swaa_runtime.config import EngineConfig
from swaa_runtime.kernels import elementwise, elementwise_reference, skinny
from swaa_runtime.model import layer_graphs
from swaa_runtime.model.adapters import AdapterRows
from swaa_runtime.model.fused import FusedDecoder
from swaa_runtime.model.layer_graphs import GraphedDecoder, padded, sizes
from swaa_runtime.model.loader import LoadedModel
from swaa_runtime.recipe import Recipe
from tests.swaa_runtime.builders import (
    NAN,
    assert_equals_oracle,
    build_request,
    build_rig,
    engine_config,
    write_adapter,
)
from tests.swaa_runtime.model.test_fused import DENSE, DEVICE, OwnAttention, RecordingFusedRunner, fresh_model

NUM_LAYERS = 3


class GraphedRunner(RecordingFusedRunner):
    """A runner whose short steps go through the buffers."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        super().__init__(loaded, config)
        self._fused = GraphedDecoder(self._fused, self.part, loaded.shape, config.max_step_tokens)  # type: ignore[assignment]


class SharedAttention(OwnAttention):
    """One of a step of its own, in the memory of another; it calls back before each layer."""

    def __init__(
        self, other: OwnAttention, slots: list[int], before: Callable[[int], None] = lambda layer: None
    ) -> None:
        self.storage = other.storage
        self.slots = torch.tensor(slots, device=DEVICE).expand(NUM_LAYERS, -1)
        self.attended = []
        self._before = before

    def attend_stored(self, layer: int, query: torch.Tensor, scale: float) -> torch.Tensor:
        self._before(layer)
        self.attended.append(layer)
        return self.storage.values[self.slots[layer]].squeeze(1).repeat_interleave(2, dim=1)


class Pair:
    """A decoder, and short steps of it, with memory for each."""

    def __init__(self, loaded: LoadedModel, max_tokens: int = 600) -> None:
        loaded.model.to(DEVICE)
        ops = elementwise if DEVICE.type == "cuda" else elementwise_reference
        linear = skinny.linear if DEVICE.type == "cuda" else functional.linear
        self.plain = FusedDecoder(loaded.model, ops, linear)
        self.plain_memory = OwnAttention(NUM_LAYERS, max_tokens, DEVICE)
        self.memory = OwnAttention(NUM_LAYERS, max_tokens, DEVICE)
        for memory in (self.plain_memory, self.memory):
            memory.storage.fill(range(max_tokens), NAN)
        self.graphed = GraphedDecoder(self.plain, self.memory.storage, loaded.shape, max_tokens)

    def check(
        self,
        slots: list[int],
        rows: list[int] | None = None,
        num_layers: int | None = None,
        before: Callable[[int], None] = lambda layer: None,
    ) -> None:
        """A step whose tokens live in such slots has the same result, and stores the same there, nothing elsewhere."""
        positions = torch.tensor(slots, device=DEVICE) * 3 + 1
        token_ids = positions % 40
        wanted = None if rows is None else torch.tensor(rows, dtype=torch.int64, device=DEVICE)
        want = self.plain.forward(token_ids, positions, SharedAttention(self.plain_memory, slots), wanted, num_layers)
        context = SharedAttention(self.memory, slots, before)
        got = self.graphed.forward(token_ids, positions, context, wanted, num_layers)
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=0, atol=2e-5)
        for name in ("keys", "values"):
            stored, expected = (getattr(memory.storage, name) for memory in (self.memory, self.plain_memory))
            torch.testing.assert_close(stored[slots], expected[slots], rtol=0, atol=2e-5)
            assert torch.equal(stored.isnan(), expected.isnan())
        num_attended = NUM_LAYERS if rows != [] else (num_layers or NUM_LAYERS) - 1
        assert context.attended == list(range(num_attended))


@pytest.fixture
def pair() -> Pair:
    return Pair(fresh_model("qwen3"))


@pytest.mark.parametrize("family", DENSE)
def test_mixed_batches_in_chunks_equal_the_oracle(family: str) -> None:
    loaded = fresh_model(family)
    rig = build_rig(loaded, engine_config(max_step_tokens=21), make_runner=GraphedRunner)
    recipes = [Recipe(window=8, sink_tokens=2, full_tail=3, full_layers="1::2"), Recipe(), Recipe(window=5)]
    requests = [rig.add(build_request(f"r{at}", 40 - 7 * at, recipe)) for at, recipe in enumerate(recipes)]
    rig.run()
    for request in requests:
        assert_equals_oracle(rig, loaded, request)


@pytest.mark.parametrize("rows", [None, [], [4], [0, 2, 4]])
@torch.inference_mode()
def test_a_step_has_the_decoders_result_whatever_ran_before(pair: Pair, rows: list[int] | None) -> None:
    pair.check(list(range(300)))
    pair.check([9, 4, 310, 5, 2], rows)
    pair.check([1, 0, 7, 8, 311, 312], rows)


@torch.inference_mode()
def test_of_no_rows_few_layers_are_enough(pair: Pair) -> None:
    pair.check([3, 1, 4], rows=[], num_layers=2)
    pair.check([3, 1, 4], rows=[1], num_layers=2)  # whoever wants rows needs all


@torch.inference_mode()
def test_a_step_between_the_layers_of_another_leaves_that_as_it_is(pair: Pair) -> None:
    seen: list[int] = []

    def interrupt(layer: int) -> None:
        pair.check([20 + 2 * layer, 21 + 2 * layer])
        seen.append(layer)

    pair.check(list(range(20)), before=interrupt)
    assert seen == [0, 1, 2]


@torch.inference_mode()
def test_a_short_step_between_the_layers_of_a_longer_one_has_buffers_of_its_own(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_graphs, "SHORT_TOKENS", 64)
    pair = Pair(fresh_model("qwen3"))
    in_use: list[tuple[bool, bool]] = []

    def look(layer: int) -> None:
        in_use.append((pair.graphed._short.in_use, pair.graphed._long.in_use))

    def interrupt(layer: int) -> None:
        pair.check([300 + layer, 310 + layer], before=look)

    pair.check(list(range(200)), before=interrupt)
    assert in_use == [(True, True)] * NUM_LAYERS**2
    look(0)
    assert in_use[-1] == (False, False)


@torch.inference_mode()
def test_a_step_that_fails_is_not_in_the_way_of_the_next(pair: Pair) -> None:
    def fail(layer: int) -> None:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        pair.check([0, 1], before=fail)
    before = pair.graphed._short.residual.clone()
    pair.check([0, 1, 2])
    assert not torch.equal(pair.graphed._short.residual, before), "it went through the buffers"


@torch.inference_mode()
def test_longer_steps_are_the_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_graphs, "MAX_TOKENS", 5)
    pair = Pair(fresh_model("qwen2"))
    monkeypatch.setattr(pair.graphed, "_forward", None)
    pair.check(list(range(6)))
    with pytest.raises(TypeError):
        pair.check(list(range(5)))


@torch.inference_mode()
def test_steps_with_adapters_are_the_decoders(tmp_path: Path) -> None:
    loaded = fresh_model("llama", {"one": write_adapter(tmp_path / "one", 1)})
    if DEVICE.type == "cuda":
        pytest.skip("adapters are on the device that the model was loaded to")
    pair = Pair(loaded)
    with loaded.adapters.active.during([AdapterRows(loaded.adapters.ids["one"], slice(2, 5))]):
        pair.check([3, 1, 4, 0, 5])
        pair.check([3, 1, 4, 0, 5], rows=[4])
    assert not pair.graphed._short.token_ids.any()
    pair.check([3, 1, 4, 0, 5], rows=[4])
    assert pair.graphed._short.token_ids.any()


@pytest.mark.gpu
@torch.inference_mode()
def test_graphs_of_all_sizes_are_recorded_at_once_and_store_nothing(pair: Pair) -> None:
    pair.graphed.capture_all()
    assert sorted(pair.graphed._graphs) == sizes(600)
    assert pair.memory.storage.keys.isnan().all()
    recorded = dict(pair.graphed._graphs)
    for num_tokens in (600, 257, 256, 33, 1):
        pair.check(list(range(num_tokens)))
    assert pair.graphed._graphs == recorded


@pytest.mark.parametrize(
    ("num_tokens", "size"),
    [(1, 32), (32, 32), (33, 64), (100, 128), (128, 128), (129, 256), (1100, 1152), (2048, 2048), (2049, 2304)],
)
def test_sizes(num_tokens: int, size: int) -> None:
    assert padded(num_tokens) == size
    assert size in sizes(4096)


def test_there_are_few_sizes() -> None:
    assert sizes(300) == [32, 64, 128, 256, 384]
    assert len(sizes(2048)) == 18
    assert len(sizes(4096)) == 26
