"""Attention read in place equals the oracle, and reads nothing that no query sees: all other memory is NaN here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, cycle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa_runtime.attention.oracle import oracle_attention, visibility_mask
from swaa_runtime.kernels.paged_attention import SEES_ALL, Launch, Tiles, paged_attention, queries_per_tile
from swaa_runtime.kv_cache.quantise import dequantise, quantise
from swaa_runtime.recipe import LayerRule
from swaa_runtime.visibility import Turn
from tests.swaa_runtime.builders import NAN
from tests.swaa_runtime.kernels.test_elementwise import DEVICE

TURNS = (Turn(0, 1 << 30),)
SCALE = 0.35
FULL = LayerRule()


@dataclass(frozen=True, slots=True)
class Run:
    """Queries [start, stop) of a sequence of their own, and the rule they attend by."""

    start: int
    stop: int
    rule: LayerRule = FULL

    @property
    def count(self) -> int:
        return self.stop - self.start

    @property
    def fields(self) -> tuple[int, int]:
        """Window and sinks as a tile has them."""
        return (SEES_ALL, 0) if self.rule.window is None else (self.rule.window, self.rule.sink_tokens)


class Paged:
    """Some runs in paged memory, of which only blocks that a query sees are written, up to the run's last token.

    A row that no tile names lies before, between and after the rows of the runs.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        num_heads: int = 2,
        num_kv_heads: int = 1,
        head_dim: int = 16,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
        kept_in: torch.dtype | None = None,
    ) -> None:
        """`kept_in`: K and V have 8 bits and scales; the sequences are what is read of that."""
        self.runs, self.block_size, self.dtype = runs, block_size, dtype
        self._generator = torch.Generator().manual_seed(0)
        self.starts = list(accumulate((run.count + 1 for run in runs), initial=1))
        num_rows = self.starts.pop()
        # As it comes from the projection of q, k and v: a view, whose rows are further apart than they are long.
        qkv = self._random(num_rows, (num_heads + 2 * num_kv_heads) * head_dim)
        self.query = qkv[:, : num_heads * head_dim].view(num_rows, num_heads, head_dim)
        num_blocks = sum(-(-run.stop // block_size) for run in runs)
        self._free = (torch.randperm(num_blocks, generator=self._generator) + 1).tolist()
        shape = (num_blocks + 1, block_size, num_kv_heads, head_dim)
        self.keys, self.values = (torch.full(shape, NAN, dtype=dtype, device=DEVICE) for _ in range(2))
        self.scales: tuple[torch.Tensor, torch.Tensor] | None = None
        self._kept_in = kept_in
        if kept_in is not None:
            nothing = torch.full((num_blocks + 1, num_kv_heads, block_size), NAN, device=DEVICE)
            self.scales = nothing, nothing.clone()
            self.keys, self.values = (torch.ones(shape, device=DEVICE).to(kept_in) for _ in range(2))
        self.table: list[int] = []
        self.offsets: list[int] = []
        self.sequences = [self._write(run) for run in runs]

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator).to(DEVICE, self.dtype)

    def _write(self, run: Run) -> tuple[torch.Tensor, torch.Tensor]:
        """One sequence's K and V [num_kv_heads, stop, head_dim]; what is not seen has block 0, which is NaN."""
        sequence = self._random(2, run.stop, *self.keys.shape[2:])
        kept, scales = sequence, None
        if self._kept_in is not None:
            kept, scales = quantise(sequence, self._kept_in)
            sequence = dequantise(kept, scales, self.dtype)
        seen = visibility_mask(run.rule, TURNS, run.start, run.stop).any(dim=0)
        self.offsets.append(len(self.table))
        for low in range(0, run.stop, self.block_size):
            high = min(low + self.block_size, run.stop)
            block = self._free.pop() if bool(seen[low:high].any()) else 0
            self.table.append(block)
            if block:
                self.keys[block, : high - low], self.values[block, : high - low] = kept[:, low:high]
            if block and scales is not None and self.scales is not None:
                for memory, of_rows in zip(self.scales, scales, strict=True):
                    memory[block, :, : high - low] = of_rows[low:high].T
        return sequence[0].transpose(0, 1), sequence[1].transpose(0, 1)

    def attend(self, splits: int = 1, max_queries: int = 8) -> torch.Tensor:
        """What the kernel makes of rows that were NaN before: [rows, num_heads, head_dim]."""
        tiles, rules = [], []
        rows: list[int] = []
        for index, (run, first) in enumerate(zip(self.runs, self.starts, strict=True)):
            for at in range(0, run.count, max_queries):
                count = min(max_queries, run.count - at)
                tiles.append((first + at, count, run.start + at, index, len(rows)))
                rules.append(run.fields)
                rows += range(first + at, first + at + count)
        work = Tiles(
            fields=torch.tensor(tiles, dtype=torch.int32, device=DEVICE),
            rules=torch.tensor(rules, dtype=torch.int32, device=DEVICE),
            max_queries=min(max_queries, max(run.count for run in self.runs)),
            splits=splits,
            partial_rows=torch.tensor(rows, device=DEVICE) if splits > 1 else None,
        )
        launch = Launch(
            work,
            offsets=torch.tensor(self.offsets, device=DEVICE)[:, None].expand(-1, 2).contiguous(),
            table=torch.tensor(self.table, dtype=torch.int32, device=DEVICE),
        )
        out = torch.full(self.query.shape, NAN, dtype=self.dtype, device=DEVICE)
        paged_attention(self.query, self.keys, self.values, launch, SCALE, out, self.scales)
        return out

    def oracle(self) -> torch.Tensor:
        """The same by the oracle; NaN where no tile is."""
        out = torch.full(self.query.shape, NAN, dtype=self.dtype, device=DEVICE)
        for run, first, (key, value) in zip(self.runs, self.starts, self.sequences, strict=True):
            rows = slice(first, first + run.count)
            query = self.query[rows].transpose(0, 1)
            out[rows] = oracle_attention(query, key, value, run.rule, TURNS, run.start, SCALE)
        return out

    def check(self, splits: int = 1, max_queries: int = 8) -> None:
        """Rows that tiles name have the oracle's values, all others are as they were."""
        torch.testing.assert_close(
            self.attend(splits, max_queries), self.oracle(), atol=3e-6, rtol=1e-5, equal_nan=True
        )

    def check_roughly(self, splits: int, max_queries: int = 8) -> None:
        """The same to 1e-2 of the whole, for values of 16 bits."""
        got, want = self.attend(splits, max_queries), self.oracle()
        named = want.isfinite()
        assert torch.equal(got.isfinite(), named)
        assert ((got - want)[named].float().norm() / want[named].float().norm()).item() < 1e-2


def assert_same(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, atol=3e-6, rtol=1e-5, equal_nan=True)


# Where the edges are: of tiles, blocks, windows and sinks.


@pytest.mark.parametrize("splits", [1, 2])
def test_windows_and_sinks_at_every_edge(splits: int) -> None:
    rules = [LayerRule(window, sinks) for window in (1, 2, 16, 17, 40) for sinks in (0, 1, 16, 17)]
    positions = cycle([0, 79, 15, 32, 60, 16, 47])
    Paged([Run(at, at + 1, rule) for rule, at in zip(rules, positions, strict=False)]).check(splits)


def test_chunks_whose_tiles_begin_and_end_anywhere() -> None:
    rule = LayerRule(20, 3)
    Paged([Run(0, 21), Run(0, 21, rule), Run(37, 48, rule), Run(48, 64, rule), Run(70, 75)]).check()


def test_a_window_and_sinks_that_overlap() -> None:
    Paged([Run(30, 40, LayerRule(25, 20)), Run(10, 14, LayerRule(3, 12))]).check()


@pytest.mark.parametrize("splits", [4, 8])
def test_more_programs_than_keys_to_share(splits: int) -> None:
    """Some of them read nothing, and what they leave counts nothing."""
    Paged([Run(3, 5), Run(100, 102), Run(90, 91, LayerRule(2, 1))]).check(splits)


def test_a_tile_of_no_queries_reads_and_writes_nothing() -> None:
    paged = Paged([Run(20, 21), Run(5, 6, LayerRule(3, 1))])
    want = paged.oracle()
    want[paged.starts[0]] = NAN
    for splits in (1, 2):
        out = torch.full_like(want, NAN)
        work = Tiles(
            fields=torch.tensor([[1, 0, 20, 0, 0], [3, 1, 5, 1, 1]], dtype=torch.int32, device=DEVICE),
            rules=torch.tensor([run.fields for run in paged.runs], dtype=torch.int32, device=DEVICE),
            max_queries=1,
            splits=splits,
            partial_rows=torch.tensor([0, 3], device=DEVICE),
        )
        offsets = torch.tensor([[1 << 40, 1 << 40], [2, 2]], device=DEVICE)
        launch = Launch(work, offsets, torch.tensor(paged.table, dtype=torch.int32, device=DEVICE))
        paged_attention(paged.query, paged.keys, paged.values, launch, SCALE, out)
        assert_same(out[2:], want[2:])


def test_no_tiles_are_no_launch() -> None:
    out = torch.full((3, 2, 16), NAN)
    nothing = torch.zeros(0, 5, dtype=torch.int32)
    launch = Launch(Tiles(nothing, nothing, 1), nothing, nothing)
    paged_attention(out, out[:, None], out[:, None], launch, SCALE, out)
    assert out.isnan().all()


# Shapes.


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(6, 2), (3, 3), (5, 1)])
@pytest.mark.parametrize("splits", [1, 2])
def test_any_number_of_query_heads_shares_a_kv_head(num_heads: int, num_kv_heads: int, splits: int) -> None:
    Paged([Run(30, 33, LayerRule(9, 2)), Run(17, 20)], num_heads, num_kv_heads).check(splits)


@pytest.mark.parametrize(("block_size", "head_dim"), [(32, 32), (128, 16)])
def test_blocks_of_any_power_of_two(block_size: int, head_dim: int) -> None:
    """Of 128 tokens a block is two key tiles."""
    runs = [Run(250, 253, LayerRule(70, 5)), Run(140, 141)]
    Paged(runs, head_dim=head_dim, block_size=block_size).check(splits=2)


@pytest.mark.parametrize("splits", [1, 2])
def test_half_precision_is_within_a_hundredth(splits: int) -> None:
    """float16: the interpreter does not multiply bfloat16."""
    Paged([Run(50, 53, LayerRule(20, 3)), Run(40, 41)], dtype=torch.float16).check_roughly(splits)


@pytest.mark.parametrize("kept_in", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("splits", [1, 2])
def test_keys_and_values_of_8_bits_are_read_with_their_scales(splits: int, kept_in: torch.dtype) -> None:
    """Scales that nobody wrote are NaN, also those beyond a sequence's last token."""
    runs = [Run(30, 33, LayerRule(9, 2)), Run(17, 20), Run(60, 61, LayerRule(20, 3))]
    Paged(runs, 6, 2, 16, 32, kept_in=kept_in).check(splits)


@pytest.mark.parametrize(("heads", "queries"), [((32, 8), 32), ((9, 3), 32), ((8, 8), 128), ((256, 1), 1)])
def test_a_prefill_tile_fills_its_rows(heads: tuple[int, int], queries: int) -> None:
    assert queries_per_tile(*heads) == queries


@st.composite
def runs(draw: st.DrawFn) -> Run:
    start = draw(st.integers(0, 90))
    sliding = st.builds(LayerRule, st.integers(1, 60), st.integers(0, 40))
    return Run(start, start + draw(st.integers(1, 12)), draw(sliding | sliding | st.just(FULL)))


@settings(max_examples=12)
@given(st.lists(runs(), min_size=1, max_size=2), st.sampled_from([1, 2, 4]), st.sampled_from([1, 5, 8]))
def test_any_mix_of_runs(mix: list[Run], splits: int, max_queries: int) -> None:
    Paged(mix).check(splits, max_queries)


# As it runs on a GPU.


@pytest.mark.gpu
@pytest.mark.parametrize("splits", [1, 8, 32])
@pytest.mark.parametrize("block_size", [32, 64])
@pytest.mark.parametrize(
    "rule", [LayerRule(), LayerRule(2048, 64), LayerRule(2048), LayerRule(1, 1)], ids=["full", "sinks", "window", "one"]
)
def test_the_shapes_of_a_real_model(rule: LayerRule, block_size: int, splits: int) -> None:
    chunks = [Run(4000, 4001, rule), Run(6000, 6100, rule), Run(0, 33, rule)]
    for kept_in in (None, torch.int8, torch.float8_e4m3fn):
        Paged(chunks, 32, 8, 128, block_size, torch.bfloat16, kept_in).check_roughly(splits, queries_per_tile(32, 8))
