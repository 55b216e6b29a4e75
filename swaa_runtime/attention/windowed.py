"""Linear attention for sliding layers, exact: sinks, band and causal part by dense kernels, merged by log-sum-exp.

keys        0    S            a-W+1        a              b
sinks       |####|            .            .              .     rectangle: every query by S keys
band        .    .            |############|##############|     tiles of T queries by W-1+T keys, one mask for all
sees all    |#############################|##############|      rectangle [0, a) and causal [a, b)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from swaa_runtime.attention.backend import ChunkView
from swaa_runtime.attention.dense import Partial, dense_attention, merge
from swaa_runtime.kv_cache.storage import KVStorage
from swaa_runtime.recipe import LayerRule
from swaa_runtime.visibility import QueryRun, query_runs

TILE_TOKENS = 128
"""Queries per band tile: small enough that little of a tile is masked, large enough to fill the matrix units."""

MIN_UPCAST_QUERIES = 16
"""On CPU, torch's flash attention is faster in float32 than in bfloat16 once converting the keys is amortised."""


class WindowedBackend:
    """Work proportional to what is visible: O(sinks + window) per sliding query, whatever the sequence's length."""

    name = "windowed"

    def __init__(self) -> None:
        self._bands: dict[tuple[int, int, torch.dtype, torch.device], torch.Tensor] = {}

    def attend_chunk(
        self, storage: KVStorage, chunk: ChunkView, layer: int, query: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See AttentionBackend.attend_chunk."""
        rule = chunk.rules[layer]
        table = chunk.block_tables[layer]
        outs = []
        for run in query_runs(rule, chunk.turns, chunk.start, chunk.stop):
            rows = query[:, run.start - chunk.start : run.stop - chunk.start].unsqueeze(0)
            rows = rows.to(_compute_dtype(rows))
            if run.sees_all:
                out = self._sees_all(storage, table, run, rows, scale)
            else:
                out = self._sinks_and_band(storage, table, run, rule, rows, scale)
            outs.append(out[0].transpose(0, 1).to(query.dtype))
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _sees_all(
        self, storage: KVStorage, table: Sequence[int], run: QueryRun, query: torch.Tensor, scale: float
    ) -> torch.Tensor:
        key, value = _gather(storage, table, 0, run.stop, query.dtype)
        if run.stop - run.start == 1:
            return dense_attention(query, key, value, scale)[0]
        own = dense_attention(query, key[:, :, run.start :], value[:, :, run.start :], scale, causal=True)
        if run.start == 0:
            return own[0]
        past = dense_attention(query, key[:, :, : run.start], value[:, :, : run.start], scale)
        return merge(past, own)

    def _sinks_and_band(
        self,
        storage: KVStorage,
        table: Sequence[int],
        run: QueryRun,
        rule: LayerRule,
        query: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        assert rule.window is not None  # noqa: S101 - only rules with a window have such runs
        key, value = _gather(storage, table, run.start - rule.window + 1, run.stop, query.dtype)
        band = self._band(query, key, value, rule.window, scale)
        if rule.sink_tokens == 0:
            return band[0]
        sink_key, sink_value = _gather(storage, table, 0, rule.sink_tokens, query.dtype)
        return merge(dense_attention(query, sink_key, sink_value, scale), band)

    def _band(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int, scale: float) -> Partial:
        """Query i of C sees keys i .. i + window - 1 of the window - 1 + C given."""
        count = query.shape[2]
        if count == 1:
            return dense_attention(query, key, value, scale)
        whole = count - count % TILE_TOKENS
        parts = []
        if whole:
            parts.append(self._band_tiles(query[:, :, :whole], key, value, window, scale))
        if whole < count:
            rest = query[:, :, whole:]
            bias = self._band_bias(rest.shape[2], window, query)
            parts.append(dense_attention(rest, key[:, :, whole:], value[:, :, whole:], scale, bias=bias))
        if len(parts) == 1:
            return parts[0]
        return torch.cat([out for out, _ in parts], dim=2), torch.cat([lse for _, lse in parts], dim=2)

    def _band_tiles(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int, scale: float
    ) -> Partial:
        """All whole tiles in one call: tile t's keys are a view that starts TILE_TOKENS later than tile t - 1's."""
        _, num_heads, count, head_dim = query.shape
        num_tiles = count // TILE_TOKENS
        span = window - 1 + TILE_TOKENS

        def tiled(kv: torch.Tensor) -> torch.Tensor:
            _, head_stride, token_stride, _ = kv.stride()
            size = (num_tiles, kv.shape[1], span, head_dim)
            return kv.as_strided(size, (TILE_TOKENS * token_stride, head_stride, token_stride, 1), kv.storage_offset())

        tiles = query[0].reshape(num_heads, num_tiles, TILE_TOKENS, head_dim).transpose(0, 1)
        bias = self._band_bias(TILE_TOKENS, window, query)
        out, lse = dense_attention(tiles, tiled(key), tiled(value), scale, bias=bias)
        return (
            out.transpose(0, 1).reshape(1, num_heads, count, head_dim),
            lse.transpose(0, 1).reshape(1, num_heads, count),
        )

    def _band_bias(self, num_queries: int, window: int, like: torch.Tensor) -> torch.Tensor:
        """0 where query i sees key j of its tile (i <= j < i + window), else -inf.

        Shape [num_queries, window - 1 + num_queries]. Full-size tiles are kept; the last, partial one is cut from one.
        """
        at = (TILE_TOKENS, window, like.dtype, like.device)
        if at not in self._bands:
            query = torch.arange(TILE_TOKENS, device=like.device)[:, None]
            key = torch.arange(window - 1 + TILE_TOKENS, device=like.device)[None, :]
            unseen = (key < query) | (key >= query + window)
            self._bands[at] = torch.zeros(unseen.shape, dtype=like.dtype, device=like.device).masked_fill(
                unseen, -torch.inf
            )
        return self._bands[at][:num_queries, : window - 1 + num_queries]


def _compute_dtype(query: torch.Tensor) -> torch.dtype:
    if query.device.type == "cpu" and query.shape[2] >= MIN_UPCAST_QUERIES:
        return torch.float32
    return query.dtype


def _gather(
    storage: KVStorage, table: Sequence[int], start: int, stop: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V of tokens [start, stop) as dense attention takes them, each [1, num_kv_heads, stop - start, head_dim]."""
    key, value = storage.gather(table, start, stop)
    return key.to(dtype).transpose(0, 1).unsqueeze(0), value.to(dtype).transpose(0, 1).unsqueeze(0)
