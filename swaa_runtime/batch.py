"""One step's work, flattened: chunks of different requests, with different recipes, as one row of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from swaa_runtime.attention.backend import ChunkView
from swaa_runtime.kv_cache.storage import slot_ids
from swaa_runtime.model.adapters import AdapterRows
from swaa_runtime.request import Request
from swaa_runtime.visibility import adapter_start


@dataclass(frozen=True, slots=True)
class ScheduledChunk:
    """Run the next `num_tokens` uncomputed tokens of a request."""

    request: Request
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Input of one forward pass over T tokens.

    Attributes:
        token_ids, positions: int64 [T].
        slots: int64 [num_layers, T], where each token's K and V go in each layer.
        chunks: which rows are whose.
        sampled_rows: int64 [n], the last row of each request that reaches the end of its known tokens.
        sampled: those requests, in the same order.
        adapter_rows: which rows use an adapter.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    chunks: tuple[ChunkView, ...]
    sampled_rows: torch.Tensor
    sampled: tuple[Request, ...]
    adapter_rows: tuple[AdapterRows, ...] = ()


def build_batch(scheduled: Sequence[ScheduledChunk], block_size_tokens: int, device: torch.device) -> Batch:
    """Flatten scheduled chunks; their block tables must cover them already."""
    token_ids: list[int] = []
    positions: list[np.ndarray] = []
    slots: list[np.ndarray] = []
    chunks: list[ChunkView] = []
    sampled_rows: list[int] = []
    sampled: list[Request] = []
    for item in scheduled:
        request = item.request
        start = request.num_computed_tokens
        stop = start + item.num_tokens
        chunks.append(ChunkView(len(token_ids), start, stop, request.rules, request.turns, request.block_tables))
        token_ids += request.token_ids[start:stop]
        positions.append(np.arange(start, stop))
        slots.append(np.stack([slot_ids(table, start, stop, block_size_tokens) for table in request.block_tables]))
        if stop == len(request.token_ids):
            sampled_rows.append(len(token_ids) - 1)
            sampled.append(request)
    return Batch(
        token_ids=torch.tensor(token_ids, dtype=torch.int64, device=device),
        positions=torch.from_numpy(np.concatenate(positions)).to(device),
        slots=torch.from_numpy(np.concatenate(slots, axis=1)).to(device),
        chunks=tuple(chunks),
        sampled_rows=torch.tensor(sampled_rows, dtype=torch.int64, device=device),
        sampled=tuple(sampled),
        adapter_rows=_adapter_rows(scheduled, device),
    )


def _adapter_rows(scheduled: Sequence[ScheduledChunk], device: torch.device) -> tuple[AdapterRows, ...]:
    """One group an adapter, over all requests that use it, so that its cost does not depend on how many they are."""
    ranges: dict[str, list[range]] = {}
    row = 0
    for item in scheduled:
        request, stop = item.request, row + item.num_tokens
        begin = adapter_start(request.recipe.window, request.turns)
        if request.recipe.adapter is not None and begin is not None:
            low = row + max(0, begin - request.num_computed_tokens)
            if low < stop:
                ranges.setdefault(request.recipe.adapter, []).append(range(low, stop))
        row = stop
    return tuple(AdapterRows(adapter_id, _rows(parts, device)) for adapter_id, parts in ranges.items())


def _rows(parts: Sequence[range], device: torch.device) -> slice | torch.Tensor:
    if all(first.stop == second.start for first, second in pairwise(parts)):
        return slice(parts[0].start, parts[-1].stop)
    return torch.tensor([row for part in parts for row in part], dtype=torch.int64, device=device)
