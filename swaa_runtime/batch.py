"""One step's work, flattened: chunks of different requests, with different recipes, as one row of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise

import numpy as np
import torch

from swaa_runtime.attention.backend import ChunkView
from swaa_runtime.model.adapters import AdapterRows
from swaa_runtime.request import Request
from swaa_runtime.upload import upload
from swaa_runtime.visibility import adapter_start, layers_needed


@dataclass(frozen=True, slots=True)
class ScheduledChunk:
    """Run the next `num_tokens` uncomputed tokens of a request, from `start` on."""

    request: Request
    num_tokens: int
    start: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", self.request.num_computed_tokens)


@dataclass(frozen=True, slots=True)
class Batch:
    """Input of one forward pass over T tokens, on the host.

    Attributes:
        token_ids, positions: int64 [T].
        chunks: which rows are whose.
        sampled_rows: int64 [n], the last row of each request that reaches the end of its known tokens.
        sampled: those requests, in the same order.
        adapter_ranges: rows that use an adapter, by its id.
        num_layers: so many of the model's layers must run, from the first; later tokens see nothing of the others.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    chunks: tuple[ChunkView, ...]
    sampled_rows: np.ndarray
    sampled: tuple[Request, ...]
    adapter_ranges: Mapping[str, Sequence[range]]
    num_layers: int

    @property
    def only_decodes(self) -> bool:
        """Whether every chunk is one generated token, after which the next is sampled.

        A prompt's last token alone is none: it may see less than a generated one, or more (DESIGN §3).
        """
        if len(self.sampled_rows) < len(self.token_ids):
            return False
        return all(chunk.start >= chunk.turns[-1].generated_start for chunk in self.chunks)

    def slots(self, block_size_tokens: int, device: torch.device) -> torch.Tensor:
        """Where each token's K and V go in each layer, int64 [num_layers, T], a layer's beside each other.

        Only the blocks are sent to the device: of a long chunk in many layers that is far less than its tokens.
        """
        blocks: list[np.ndarray] = []
        columns: list[np.ndarray] = []
        num_blocks = 0
        for chunk in self.chunks:
            first, stop = chunk.start // block_size_tokens, -(-chunk.stop // block_size_tokens)
            blocks.append(np.array([table[first:stop] for table in chunk.block_tables], dtype=np.int64))
            columns.append(np.arange(chunk.start, chunk.stop) // block_size_tokens + (num_blocks - first))
            num_blocks += stop - first
        starts = upload(np.concatenate(blocks, axis=1) * block_size_tokens, device)
        offsets = upload(self.positions % block_size_tokens, device)
        return starts.index_select(1, upload(np.concatenate(columns), device)).add_(offsets)

    def adapter_rows(self, device: torch.device) -> tuple[AdapterRows, ...]:
        """One group an adapter, over all requests that use it: its cost does not depend on how many they are."""
        return tuple(AdapterRows(name, _rows(parts, device)) for name, parts in self.adapter_ranges.items())


def build_batch(scheduled: Sequence[ScheduledChunk], block_size_tokens: int, skip_unseen: bool = False) -> Batch:
    """Flatten scheduled chunks; their block tables must cover them already.

    Args:
        skip_unseen: leave out layers of which later tokens see nothing.
    """
    token_ids: list[int] = []
    positions: list[range] = []
    chunks: list[ChunkView] = []
    sampled_rows: list[int] = []
    sampled: list[Request] = []
    for item in scheduled:
        request = item.request
        start, stop = item.start, item.start + item.num_tokens
        chunks.append(ChunkView(len(token_ids), start, stop, request.rules, request.turns, request.block_tables))
        token_ids += request.token_ids[start:stop]
        positions.append(range(start, stop))
        if stop == len(request.token_ids):
            sampled_rows.append(len(token_ids) - 1)
            sampled.append(request)
    return Batch(
        token_ids=np.array(token_ids, dtype=np.int64),
        positions=np.fromiter(chain.from_iterable(positions), dtype=np.int64, count=len(token_ids)),
        chunks=tuple(chunks),
        sampled_rows=np.array(sampled_rows, dtype=np.int64),
        sampled=tuple(sampled),
        adapter_ranges=_adapter_ranges(scheduled),
        num_layers=max(_num_layers(item, block_size_tokens, skip_unseen) for item in scheduled),
    )


def _num_layers(item: ScheduledChunk, block_size_tokens: int, skip_unseen: bool) -> int:
    request = item.request
    saves_part = request.checkpoint_tokens > 0  # of a prompt: its state needs all layers
    if not skip_unseen or saves_part or item.start >= request.prompt_stop:
        return len(request.rules)
    return layers_needed(
        request.rules, request.prompt_stop, item.start, item.start + item.num_tokens, block_size_tokens
    )


def _adapter_ranges(scheduled: Sequence[ScheduledChunk]) -> dict[str, list[range]]:
    ranges: dict[str, list[range]] = {}
    row = 0
    for item in scheduled:
        request, stop = item.request, row + item.num_tokens
        if request.recipe.adapter is not None:
            begin = adapter_start(request.recipe.window, request.turns)
            low = stop if begin is None else row + max(0, begin - item.start)
            if low < stop:
                ranges.setdefault(request.recipe.adapter, []).append(range(low, stop))
        row = stop
    return ranges


def _rows(parts: Sequence[range], device: torch.device) -> slice | torch.Tensor:
    if all(first.stop == second.start for first, second in pairwise(parts)):
        return slice(parts[0].start, parts[-1].stop)
    return torch.tensor([row for part in parts for row in part], dtype=torch.int64, device=device)
