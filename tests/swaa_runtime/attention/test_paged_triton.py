"""What is planned for the kernels gives the oracle's attention, whatever a step is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa_runtime.attention import paged_triton
from swaa_runtime.attention.backend import ChunkView
from swaa_runtime.attention.oracle import oracle_attention, visibility_mask
from swaa_runtime.attention.paged_triton import (
    MAX_PARTS,
    MAX_SPLITS,
    PROGRAMS,
    SPLIT_QUERIES,
    DenseRun,
    TritonContext,
    check_shape,
    num_splits,
    plan_layer,
    step_tables,
    uneven_splits,
    warm_up,
)
from swaa_runtime.attention.prefix import PiecewisePrefix
from swaa_runtime.config import KVDtypeName
from swaa_runtime.errors import ModelNotSupported
from swaa_runtime.kernels.paged_attention import SEES_ALL, Launch, paged_attention
from swaa_runtime.kv_cache.storage import KVStorage, slot_ids
from swaa_runtime.recipe import LayerRule, Recipe
from swaa_runtime.shape import ModelShape
from swaa_runtime.visibility import Turn
from tests.swaa_runtime.builders import NAN
from tests.swaa_runtime.kernels import paged_reference
from tests.swaa_runtime.kernels.test_elementwise import DEVICE
from tests.swaa_runtime.strategies import layer_rules, turn_lists

BLOCK, HEAD_DIM, SCALE = 16, 16, 0.35
PROMPT = (Turn(0, 1 << 30),)


def model_shape(num_layers: int = 2, num_heads: int = 2, num_kv_heads: int = 1, head_dim: int = HEAD_DIM) -> ModelShape:
    return ModelShape(num_layers, num_heads, num_kv_heads, head_dim, 64, 1 << 20, "float32")


@dataclass(frozen=True, slots=True)
class Part:
    """A chunk of a step: queries [start, stop), and the rule of each layer."""

    start: int
    stop: int
    rules: tuple[LayerRule, ...]
    turns: tuple[Turn, ...] = PROMPT


class Step:
    """Random sequences in paged memory, up to the tokens of one step. All memory that no query may read is NaN."""

    def __init__(self, parts: Sequence[Part], shape: ModelShape) -> None:
        self.shape, self.parts = shape, parts
        self._generator = torch.Generator().manual_seed(0)
        num_blocks = sum(-(-part.stop // BLOCK) for part in parts) * shape.num_layers
        self._free = (torch.randperm(num_blocks, generator=self._generator) + 1).tolist()
        self.storage = KVStorage(num_blocks + 1, BLOCK, shape.num_kv_heads, shape.head_dim, torch.float32, DEVICE)
        self.storage.fill(range(num_blocks + 1), NAN)
        self.chunks: list[ChunkView] = []
        self.keys: list[torch.Tensor] = []
        row = 0
        for part in parts:
            size = (shape.num_layers, 2, part.stop, shape.num_kv_heads, shape.head_dim)
            self.keys.append(torch.randn(size, generator=self._generator).to(DEVICE))
            tables = [self._write(part, layer, kv) for layer, kv in enumerate(self.keys[-1])]
            self.chunks.append(ChunkView(row, part.start, part.stop, part.rules, part.turns, tables))
            row += part.stop - part.start
        self.query = torch.randn(row, shape.num_heads, shape.head_dim, generator=self._generator).to(DEVICE)
        slots = [
            torch.cat([torch.from_numpy(slot_ids(c.block_tables[layer], c.start, c.stop, BLOCK)) for c in self.chunks])
            for layer in range(shape.num_layers)
        ]
        self.slots = torch.stack(slots).to(DEVICE)

    def _write(self, part: Part, layer: int, kv: torch.Tensor) -> list[int]:
        """The past of one sequence in one layer; blocks that nobody sees are freed."""
        seen = visibility_mask(part.rules[layer], part.turns, part.start, part.stop).any(dim=0)
        table = []
        for low in range(0, part.stop, BLOCK):
            table.append(self._free.pop() if bool(seen[low : low + BLOCK].any()) else 0)
            high = min(low + BLOCK, part.start)
            if table[-1] and low < high:
                slots = torch.from_numpy(slot_ids(table, low, high, BLOCK)).to(DEVICE)
                self.storage.write(slots, kv[0, low:high], kv[1, low:high])
        return table

    def own(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of the step's tokens, each [num_kv_heads, T, head_dim]."""
        parts = [kv[layer, :, part.start :] for part, kv in zip(self.parts, self.keys, strict=True)]
        key, value = torch.cat(parts, dim=1).transpose(1, 2)
        return key, value

    def check(self, dense_multiple: int = 16) -> None:
        """All layers in turn, by a decoder that stores K and V itself and by one that does not."""
        prefix = PiecewisePrefix("torch", dense_multiple)
        context = TritonContext(self.storage, self.shape, prefix, self.chunks, self.slots)
        for layer in range(self.shape.num_layers):
            want = torch.cat(
                [
                    oracle_attention(
                        self.query[chunk.row : chunk.row + chunk.stop - chunk.start].transpose(0, 1),
                        kv[layer, 0].transpose(0, 1),
                        kv[layer, 1].transpose(0, 1),
                        chunk.rules[layer],
                        chunk.turns,
                        chunk.start,
                        SCALE,
                    )
                    for chunk, kv in zip(self.chunks, self.keys, strict=True)
                ]
            )
            got = context.attend(layer, self.query.transpose(0, 1), *self.own(layer), SCALE)
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
            again = context.attend_stored(layer, self.query, SCALE)
            assert again.is_contiguous()
            torch.testing.assert_close(again, got, atol=0, rtol=0)


@contextmanager
def planned(kernel: Callable[..., None] | None = None, **sizes: int) -> Iterator[None]:
    """Plan by other sizes, such that small steps go all ways; and run another kernel."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in sizes.items():
            patch.setattr(paged_triton, name, size)
        if kernel is not None:
            patch.setattr(paged_triton, "paged_attention", kernel)
        yield


# Any step.


@st.composite
def parts(draw: st.DrawFn, num_layers: int) -> Part:
    start = draw(st.integers(0, 80))
    turns = draw(turn_lists())
    rules = draw(st.lists(layer_rules(max_window=50), min_size=num_layers, max_size=num_layers))
    return Part(start, start + draw(st.one_of(st.integers(1, 40), st.just(1))), tuple(rules), turns)


@settings(max_examples=150)
@given(
    st.lists(parts(2), min_size=1, max_size=4),
    st.sampled_from([(2, 1), (6, 2), (3, 3)]),
    st.sampled_from([1, 8, 1024]),
    st.sampled_from([1, 4, 128]),
    st.sampled_from([1, 16, 512]),
)
def test_any_step_equals_the_oracle(
    mix: list[Part], heads: tuple[int, int], dense: int, split: int, programs: int
) -> None:
    sizes = {"DENSE_KEYS": dense, "SPLIT_QUERIES": split, "LONG_SPLIT_QUERIES": 2 * split, "LONG_KEYS": 40}
    with planned(paged_reference.paged_attention, **sizes, PROGRAMS=programs):
        Step(mix, model_shape(2, *heads)).check(dense)


def test_all_ways_at_once_through_the_kernel() -> None:
    """A prompt's chunk with a tail, a dense one, a last token alone, and generated tokens that look back and do not."""
    sliding, back = LayerRule(20, 3), LayerRule(20, 3, full_decode=True, full_tail=4)
    chunks = [
        Part(30, 48, (sliding, back), (Turn(0, 48),)),
        Part(20, 41, (LayerRule(), LayerRule())),
        Part(50, 51, (sliding, back), (Turn(0, 51),)),
        Part(33, 34, (sliding, back), (Turn(0, 20, 28), Turn(28, 32))),
    ]
    with planned(DENSE_KEYS=16, SPLIT_QUERIES=4, PROGRAMS=16):
        Step(chunks, model_shape()).check()


# What is planned.


def test_layers_of_the_same_rules_are_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    planned_for = []

    def plan(chunks: Sequence[ChunkView], rules: Sequence[LayerRule], *rest: object) -> paged_triton.LayerPlan:
        planned_for.append(rules)
        return plan_layer(chunks, rules, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(paged_triton, "plan_layer", plan)
    rules = Recipe(window=20, full_layers="1::2").resolve(6)
    step = Step([Part(0, 5, rules), Part(8, 9, rules)], model_shape(6))
    TritonContext(step.storage, step.shape, PiecewisePrefix("torch"), step.chunks, step.slots)
    assert planned_for == [(rules[0], rules[0]), (rules[1], rules[1])]


def plan_of(part: Part) -> paged_triton.LayerPlan:
    chunk = ChunkView(7, part.start, part.stop, part.rules, part.turns, [[]])
    return plan_layer([chunk], part.rules, model_shape(1, 32, 8), DEVICE, 1024)


def test_long_full_attention_is_dense_between_whole_multiples_and_the_rest_is_tiles() -> None:
    plan = plan_of(Part(1500, 4000, (LayerRule(),)))
    assert plan.dense == (DenseRun(0, 7 + 548, 2048, 3072),)
    (launch,) = plan.launches
    assert launch.splits == 1
    assert launch.fields[:, :3].tolist()[0] == [7, 32, 1500]
    assert launch.fields[:, :3].tolist()[18] == [7 + 1572, 32, 3072]
    assert int(launch.fields[:, 1].sum()) == 548 + 928


def test_few_queries_before_and_after_the_dense_ones_share_out_their_keys() -> None:
    plan = plan_of(Part(2040, 4100, (LayerRule(),)))
    assert plan.dense == (DenseRun(0, 7 + 8, 2048, 4096),)
    (launch,) = plan.launches
    assert launch.fields.tolist() == [[7, 8, 2040, 0, 0], [7 + 2056, 4, 4096, 0, 8]]
    assert launch.splits == uneven_splits(np.array([2048, 4100]), 12, 8, DEVICE)


def test_more_queries_over_many_keys_share_them_out_too() -> None:
    short, long = (plan_of(Part(start, start + 300, (LayerRule(),))).launches for start in (3000, 9000))
    assert [launch.splits for launch in short] == [1]
    assert [launch.splits for launch in long] == [num_splits(1, DEVICE)]
    window = plan_of(Part(9000, 9300, (LayerRule(2048, 64),))).launches
    assert [launch.splits for launch in window] == [1], "they see few keys wherever they stand"


def test_nothing_is_dense_where_no_multiple_lies_between() -> None:
    assert plan_of(Part(1500, 3000, (LayerRule(),))).dense == ()
    assert plan_of(Part(1025, 2047, (LayerRule(),))).dense == ()


@given(st.integers(0, 9000), st.integers(1, 9000), st.sampled_from([1, 1024]))
def test_every_query_goes_one_way(start: int, count: int, multiple: int) -> None:
    chunk = ChunkView(7, start, start + count, (LayerRule(),), PROMPT, [[]])
    plan = plan_layer([chunk], chunk.rules, model_shape(1, 32, 8), DEVICE, multiple)
    found = [(run.row, run.stop - run.start, run.start) for run in plan.dense]
    assert all(run.start % multiple == run.stop % multiple == 0 for run in plan.dense)
    for launch in plan.launches:
        found += [(row, queries, at) for row, queries, at, _, _ in launch.fields.tolist()]
    at = start
    for row, queries, position in sorted(found):
        assert (row, position) == (7 + at - start, at)
        at += queries
    assert at == start + count


def test_short_full_attention_and_windows_are_tiles() -> None:
    for part in (Part(0, 1000, (LayerRule(),)), Part(5000, 9000, (LayerRule(2048, 64),))):
        plan = plan_of(part)
        assert not plan.dense
        (launch,) = plan.launches
        assert (launch.splits, launch.max_queries) == (1, 32)
        assert int(launch.fields[:, 1].sum()) == part.stop - part.start


def test_few_queries_share_out_their_keys() -> None:
    """A generated token, and a tail of four tiles. (The interpreter, which runs one after the other, gets two.)"""
    generated = plan_of(Part(5000, 5001, (LayerRule(),))).launches[0]
    assert (generated.splits, generated.max_queries) == (num_splits(8, DEVICE), 1)
    tail = Part(4000, 5000, (LayerRule(512, 4, full_tail=SPLIT_QUERIES),), (Turn(0, 5000),))
    whole, shared = plan_of(tail).launches
    assert (whole.splits, shared.splits) == (1, num_splits(1, DEVICE))
    assert shared.rules.tolist() == [[SEES_ALL, 0]] * 4
    assert shared.partial_rows is not None
    assert shared.partial_rows.tolist() == list(range(7 + 1000 - SPLIT_QUERIES, 7 + 1000))


@given(st.integers(1, 100_000))
def test_splits_are_a_power_of_two_that_fills_a_gpu_but_no_more(num_programs: int) -> None:
    splits = num_splits(num_programs, torch.device("cuda"))
    assert splits in (1, 2, 4, 8, 16, 32)
    assert splits == 1 or splits * num_programs <= PROGRAMS
    assert splits == MAX_SPLITS or 2 * splits * num_programs > PROGRAMS


CUDA = torch.device("cuda")


@given(st.lists(st.integers(1, 1 << 20), min_size=1, max_size=300), st.integers(1, 32), st.sampled_from([1, 2, 8]))
def test_uneven_tiles_are_cut_no_finer_than_fills_a_gpu_and_fits_in_memory(
    num_keys: list[int], queries: int, heads: int
) -> None:
    splits = uneven_splits(np.array(num_keys), queries * len(num_keys), heads, CUDA)
    assert splits in (1, 2, 4, 8, 16, 32)
    assert splits == 1 or splits * queries * len(num_keys) <= MAX_PARTS
    fair_keys = sum(num_keys) * heads / PROGRAMS
    assert splits == 1 or max(num_keys) / splits >= fair_keys * (1 - 1e-9), "the longest tile's parts are fair ones"


@given(st.integers(1, 600), st.sampled_from([1, 8]), st.integers(100_000, 1_000_000))
def test_even_tiles_of_many_keys_and_few_queries_are_cut_as_if_nothing_was_known_of_them(
    count: int, heads: int, keys: int
) -> None:
    assert uneven_splits(np.full(count, keys), count, heads, CUDA) == num_splits(count * heads, CUDA)


def test_one_long_tile_is_cut_however_many_short_ones_there_are_beside_it() -> None:
    assert num_splits(16 * 8, CUDA) == 4
    assert uneven_splits(np.array([60_000] + 15 * [1500]), 16, 8, CUDA) == 32
    assert uneven_splits(np.array([60_000] + 15 * [1500]), 16 * 32, 8, CUDA) == 8, "parts must be merged"


def test_a_step_sends_only_block_ids_that_it_sees() -> None:
    """Of a million tokens those of the sinks and the window, in layers that see no more."""
    rules = (LayerRule(2048, 64), LayerRule(), LayerRule(2048), LayerRule(2048, full_tail=3))
    turns = (Turn(0, 1_000_000),)
    num_blocks = 1_000_000 // BLOCK
    tables = [list(range(layer * num_blocks, (layer + 1) * num_blocks)) for layer in range(4)]
    for start, stop, seen in (
        (500_000, 500_016, (True, False, True, True)),
        (999_990, 1_000_000, (True, False, True, False)),
    ):
        chunk = ChunkView(0, start, stop, rules, turns, tables)
        table, offsets = step_tables([chunk], 4, BLOCK)
        assert table.dtype == np.int32
        first, last = (start - 2047) // BLOCK, (stop - 1) // BLOCK
        near = last + 1 - first
        sent = [near + 4 if layer == 0 else near if windowed else last + 1 for layer, windowed in enumerate(seen)]
        assert len(table) == sum(sent)
        for layer, windowed in enumerate(seen):
            block_0, sink_0 = offsets[layer, 0].tolist()
            low = first if windowed else 0
            assert table[block_0 + low : block_0 + last + 1].tolist() == tables[layer][low : last + 1]
            if layer == 0:
                assert table[sink_0 : sink_0 + 4].tolist() == tables[layer][:4]


# Before the first step.


@pytest.mark.parametrize("kv_dtype", ["model", "int8", "fp8"])
def test_warming_up_runs_all_variants_and_leaves_memory_as_it_is(
    kv_dtype: KVDtypeName, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = model_shape(2, 6, 2)
    storage = KVStorage(3, BLOCK, 2, HEAD_DIM, torch.float32, DEVICE, kv_dtype)
    storage.fill([1, 2], NAN)
    memory = [storage.keys, storage.values, *(storage.scales or ())]
    before = [tensor.clone() for tensor in memory]
    launched: list[tuple[int, int]] = []

    def kernel(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, launch: Launch, *rest: Any) -> None:
        launched.append((launch.tiles.max_queries, launch.tiles.splits))
        paged_attention(query, keys, values, launch, *rest)

    monkeypatch.setattr(paged_triton, "paged_attention", kernel)
    warm_up(storage, shape, PiecewisePrefix("torch"), 10 * HEAD_DIM, 2048, 100)
    assert {most for most, _ in launched} == {1, 2, 4, 8, 16, 32}
    assert {splits for _, splits in launched} == {1, 2} | {num_splits(1, DEVICE)}
    for tensor, kept in zip(memory, before, strict=True):
        assert torch.equal(tensor.view(torch.uint8), kept.view(torch.uint8))


@pytest.mark.parametrize(("head_dim", "block"), [(16, 16), (128, 32), (64, 256)])
def test_powers_of_two_are_taken(head_dim: int, block: int) -> None:
    check_shape(model_shape(head_dim=head_dim), block)


@pytest.mark.parametrize(
    ("head_dim", "block", "name"),
    [(8, 32, "head_dim"), (96, 32, "head_dim"), (64, 8, "block_size"), (64, 48, "block_size")],
)
def test_other_shapes_are_refused_by_name(head_dim: int, block: int, name: str) -> None:
    with pytest.raises(ModelNotSupported, match=name):
        check_shape(model_shape(head_dim=head_dim), block)


# As it runs on a GPU.


@pytest.mark.gpu
@pytest.mark.parametrize("rule", [LayerRule(), LayerRule(700, 64), LayerRule(700, 64, full_decode=True, full_tail=64)])
def test_long_chunks_on_a_gpu(rule: LayerRule) -> None:
    turns = (Turn(0, 4500),)
    parts = [Part(2100, 4500, (rule,), turns), Part(4600, 4601, (rule,), turns), Part(0, 300, (rule,), turns)]
    Step(parts, model_shape(1, 8, 2, 128)).check()
