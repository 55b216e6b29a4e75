from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa_runtime.attention.backend import AttentionBackend, ChunkView, PagedContext
from swaa_runtime.attention.oracle import oracle_attention, visibility_mask
from swaa_runtime.attention.reference import ReferenceBackend
from swaa_runtime.attention.windowed import TILE_TOKENS, WindowedBackend
from swaa_runtime.kv_cache.storage import KVStorage, slot_ids
from swaa_runtime.recipe import LayerRule
from swaa_runtime.visibility import Turn
from tests.swaa_runtime.builders import NAN
from tests.swaa_runtime.strategies import layer_rules, turn_lists

HEADS, KV_HEADS, HEAD_DIM, BLOCK, SCALE = 6, 2, 8, 4, 0.35
CPU = torch.device("cpu")


class Paged:
    """One layer's random K and V of `stop` tokens in paged memory, and the queries of its last tokens."""

    def __init__(self, start: int, stop: int, dtype: torch.dtype = torch.float32, scattered: bool = False) -> None:
        generator = torch.Generator().manual_seed(start * 1000 + stop)
        num_blocks = -(-stop // BLOCK)
        order = torch.randperm(num_blocks, generator=generator) if scattered else torch.arange(num_blocks)
        self.table = (order + 1).tolist()
        self.start, self.stop = start, stop
        self.query = torch.randn(HEADS, stop - start, HEAD_DIM, generator=generator).to(dtype)
        self.key, self.value = torch.randn(2, KV_HEADS, stop, HEAD_DIM, generator=generator).to(dtype)
        self.storage = KVStorage(num_blocks + 1, BLOCK, KV_HEADS, HEAD_DIM, dtype, CPU)
        self.storage.write(self.slots(), self.key.transpose(0, 1), self.value.transpose(0, 1))

    def slots(self) -> torch.Tensor:
        return torch.from_numpy(slot_ids(self.table, 0, self.stop, BLOCK))

    def forget(self, unseen: torch.Tensor) -> None:
        """Overwrite tokens (bool [stop]) in memory with NaN."""
        slots = self.slots()[unseen]
        nothing = torch.full((len(slots), KV_HEADS, HEAD_DIM), NAN, dtype=self.key.dtype)
        self.storage.write(slots, nothing, nothing)

    def attend(self, backend: AttentionBackend, rule: LayerRule, turns: tuple[Turn, ...]) -> torch.Tensor:
        chunk = ChunkView(0, self.start, self.stop, [rule], turns, [self.table])
        return backend.attend_chunk(self.storage, chunk, 0, self.query, SCALE)

    def oracle(self, rule: LayerRule, turns: tuple[Turn, ...]) -> torch.Tensor:
        return oracle_attention(self.query, self.key, self.value, rule, turns, self.start, SCALE)


@settings(max_examples=250)
@given(
    layer_rules(max_window=60),
    turn_lists(),
    st.integers(0, 80),
    st.one_of(
        st.integers(1, 40), st.sampled_from([TILE_TOKENS - 1, TILE_TOKENS, TILE_TOKENS + 1, 2 * TILE_TOKENS, 300])
    ),
    st.booleans(),
)
def test_windowed_equals_reference_equals_oracle(
    rule: LayerRule, turns: tuple[Turn, ...], start: int, count: int, scattered: bool
) -> None:
    paged = Paged(start, start + count, scattered=scattered)
    want = paged.oracle(rule, turns)
    assert torch.equal(paged.attend(ReferenceBackend(), rule, turns), want)
    got = paged.attend(WindowedBackend(), rule, turns)
    assert got.shape == (count, HEADS, HEAD_DIM)
    torch.testing.assert_close(got, want, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("window", [1, 2, 30, TILE_TOKENS, TILE_TOKENS + 1, 400])
@pytest.mark.parametrize("sinks", [0, 1, 20])
@pytest.mark.parametrize("count", [1, TILE_TOKENS, 3 * TILE_TOKENS + 5])
def test_long_prompt_chunks(window: int, sinks: int, count: int) -> None:
    """Purely sliding chunks of whole and partial tiles, far from the start."""
    paged, rule, turns = Paged(500, 500 + count), LayerRule(window, sinks), (Turn(0, 5000),)
    torch.testing.assert_close(
        paged.attend(WindowedBackend(), rule, turns), paged.oracle(rule, turns), atol=3e-6, rtol=1e-5
    )


@settings(max_examples=150)
@given(layer_rules(max_window=60), turn_lists(), st.integers(0, 200), st.sampled_from([1, 5, 40, TILE_TOKENS, 200]))
def test_reads_only_what_some_query_of_the_chunk_sees(
    rule: LayerRule, turns: tuple[Turn, ...], start: int, count: int
) -> None:
    paged = Paged(start, start + count)
    want = paged.oracle(rule, turns)
    paged.forget(~visibility_mask(rule, turns, start, start + count).any(dim=0))
    torch.testing.assert_close(paged.attend(WindowedBackend(), rule, turns), want, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 15, 16, 300])
@pytest.mark.parametrize("rule", [LayerRule(), LayerRule(40, 5), LayerRule(40, 5, full_decode=True, full_tail=9)])
def test_bfloat16_is_within_a_hundredth(rule: LayerRule, count: int) -> None:
    paged = Paged(300, 300 + count, torch.bfloat16)
    turns = (Turn(0, 310),)
    got, want = paged.attend(WindowedBackend(), rule, turns), paged.oracle(rule, turns)
    assert got.dtype == torch.bfloat16
    assert ((got - want).float().norm() / want.float().norm()).item() < 1e-2


def test_one_backend_serves_windows_and_dtypes_in_turn() -> None:
    """It keeps masks between calls: one must not serve for another."""
    backend, turns = WindowedBackend(), (Turn(0, 5000),)
    for window in (3, 50, 3, 4):
        for dtype, tolerance in ((torch.float32, 3e-6), (torch.bfloat16, 3e-2)):
            for count in (9, 20, 150):
                paged, rule = Paged(200, 200 + count, dtype), LayerRule(window, 2)
                got = paged.attend(backend, rule, turns)
                torch.testing.assert_close(got, paged.oracle(rule, turns), atol=tolerance, rtol=1e-5)


@pytest.mark.parametrize("backend", [WindowedBackend(), ReferenceBackend()], ids=lambda backend: backend.name)
def test_a_step_of_several_chunks_attends_each_to_its_own_keys(backend: AttentionBackend) -> None:
    """Two sequences of one step, written to memory by the step itself, in one storage."""
    generator = torch.Generator().manual_seed(0)
    storage = KVStorage(9, BLOCK, KV_HEADS, HEAD_DIM, torch.float32, CPU)
    tables, lengths = [[3, 1, 7], [2, 8]], [10, 6]
    rules, turns = [LayerRule(4, 1), LayerRule()], (Turn(0, 99),)
    query = torch.randn(HEADS, 16, HEAD_DIM, generator=generator)
    key, value = torch.randn(2, KV_HEADS, 16, HEAD_DIM, generator=generator)
    chunks = [ChunkView(0, 0, 10, [rules[0]], turns, [tables[0]]), ChunkView(10, 0, 6, [rules[1]], turns, [tables[1]])]
    slots = [slot_ids(table, 0, length, BLOCK) for table, length in zip(tables, lengths, strict=True)]
    context = PagedContext(storage, backend, chunks, torch.cat([torch.from_numpy(part) for part in slots])[None])
    out = context.attend(0, query, key, value, SCALE)
    for chunk, rule in zip(chunks, rules, strict=True):
        rows = slice(chunk.row, chunk.row + chunk.stop)
        want = oracle_attention(query[:, rows], key[:, rows], value[:, rows], rule, turns, 0, SCALE)
        torch.testing.assert_close(out[rows], want, atol=3e-6, rtol=1e-5)
