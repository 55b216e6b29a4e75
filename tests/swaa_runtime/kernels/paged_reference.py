"""The plain twin of the paged attention kernel, for tests of what plans its work: hundreds of times faster here."""

from __future__ import annotations

import torch

from swaa_runtime.kernels.paged_attention import TILE_FIELDS, Launch
from swaa_runtime.kv_cache.quantise import dequantise


def paged_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    launch: Launch,
    scale: float,
    out: torch.Tensor,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> None:
    """As the kernel of that name, float32 inside. Reads the blocks that it reads; rows of no tile stay as they are."""
    scales_of = scales or (None, None)
    group = query.shape[1] // keys.shape[2]
    size = keys.shape[1]
    work = launch.tiles
    assert work.fields.shape[1] == TILE_FIELDS
    for (row, count, start, table, partial), (window, sinks) in zip(
        work.fields.tolist(), work.rules.tolist(), strict=True
    ):
        if not count:
            continue
        assert count <= work.max_queries
        rows = range(row, row + count)
        if work.splits > 1:
            assert work.partial_rows is not None
            assert work.partial_rows[partial : partial + count].tolist() == list(rows)
        near, sinks_at = launch.offsets[table].tolist()
        stop = start + count
        first = max(start - window + 1, 0) // size
        num_sinks = min(-(-sinks // size), first)
        blocks = [*range(num_sinks), *range(first, -(-stop // size))]
        ids = launch.table.flatten()[
            [sinks_at + block if block < num_sinks else near + block for block in blocks]
        ].long()
        position = torch.tensor([block * size + at for block in blocks for at in range(size)])
        written = position < stop
        key, value = (
            read(kv, of_rows, ids, query.dtype).flatten(0, 1)[written].repeat_interleave(group, 1).transpose(0, 1)
            for kv, of_rows in zip((keys, values), scales_of, strict=True)
        )
        distance = torch.arange(start, stop)[:, None] - position[written]
        visible = (distance >= 0) & ((distance < window) | (position[written] < sinks))
        scores = query[row : row + count].transpose(0, 1).float() @ key.float().transpose(1, 2) * scale
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        out[row : row + count] = (weights @ value.float()).transpose(0, 1).to(out.dtype)


def read(memory: torch.Tensor, scales: torch.Tensor | None, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Some blocks, and no other: to make all of a pool's wide again would take longer than all that is computed."""
    return memory[ids] if scales is None else dequantise(memory[ids], scales[ids].transpose(1, 2), dtype)
