"""The fused decoder for steps of few tokens: all that lies between attention and attention is one launch, a CUDA graph.

Of a short prompt a GPU computes a layer in less time than the host needs to ask for its ten operations one by one, and
a host whose cores others share takes twice that now and then.

    graph 0            attention 0      graph 1                attention 1      ...     attention n     as it comes
    embedding, q k v   by the host      o, MLP, next q k v     by the host                              o, MLP, norm

A graph is for a number of tokens: steps are filled up to the next size with tokens that are stored nowhere, and of
which nobody sees anything. Attention differs from step to step, so it is no part of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from swaa_runtime.attention.backend import StoredContext
from swaa_runtime.cuda_graph import record
from swaa_runtime.kv_cache.storage import KVStorage
from swaa_runtime.model.fused import FusedDecoder
from swaa_runtime.shape import ModelShape

MAX_TOKENS = 4096
"""Of a step. From here on, computing a layer takes longer than asking for it, even if the host is slow."""

SHORT_TOKENS = 2048
"""Up to here a step is short. It may come between the layers of a longer one, so it has buffers of its own."""

MIN_SIZE, SIZE_STEP, LONG_SIZE_STEP = 32, 128, 256
"""Sizes are powers of two up to SIZE_STEP, its multiples up to SHORT_TOKENS, and multiples of the other from there."""

NOWHERE = -1


@dataclass(slots=True)
class _Buffers:
    """What graphs read and write: rows of the largest size. Shapes: see FusedDecoder.

    Attributes:
        in_use: by a step in flight.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    residual: torch.Tensor
    qkv: torch.Tensor
    attended: torch.Tensor
    in_use: bool = False


class GraphedDecoder:
    """A Decoder: short steps by graphs, all others by the decoder whose graphs they are.

    Those are: longer steps, steps with active adapters, and one between the layers of another whose buffers it needs.
    Without CUDA what would be recorded runs as it is: so it is tested.
    """

    def __init__(self, decoder: FusedDecoder, storage: KVStorage, shape: ModelShape, max_tokens: int) -> None:
        """`max_tokens`: of the longest step; graphs are made for up to MAX_TOKENS of them."""
        self.name = decoder.name
        self._decoder = decoder
        self._storage = storage
        self._shape = shape
        self._max_tokens = min(max_tokens, MAX_TOKENS)
        self._records = storage.keys.device.type == "cuda"
        self._graphs: dict[int, list[torch.cuda.CUDAGraph]] = {}
        self._short = self._allocate(padded(min(self._max_tokens, SHORT_TOKENS)))
        self._long = self._allocate(padded(self._max_tokens)) if self._max_tokens > SHORT_TOKENS else self._short

    def _allocate(self, num_rows: int) -> _Buffers:
        keys, shape = self._storage.keys, self._shape
        ids = torch.zeros(2 + shape.num_layers, num_rows, dtype=torch.int64, device=keys.device)
        widths = (shape.head_dim, shape.head_dim, self._decoder.hidden_size, self._decoder.query_row)
        cos, sin, residual, qkv, attended = (
            torch.zeros(num_rows, width, dtype=self._storage.dtype, device=keys.device)
            for width in (*widths, shape.num_heads * shape.head_dim)
        )
        return _Buffers(ids[0], ids[1], ids[2:], cos, sin, residual, qkv, attended)

    def _buffers(self, num_tokens: int) -> _Buffers:
        return self._short if num_tokens <= SHORT_TOKENS else self._long

    def capture_all(self) -> None:
        """Record the graphs of all sizes, which first steps would have to wait for."""
        if not self._records:
            return
        for size in reversed(sizes(self._max_tokens)):  # the largest first: the others fit into its memory
            self._capture(size)

    def _capture(self, size: int) -> None:
        """The graphs of one size. Nothing is stored, and no step uses its buffers."""
        self._buffers(size).slots.fill_(NOWHERE)
        for layer in range(min(2, self._shape.num_layers)):  # compiles
            self._before_attention(layer, size)
        others = next(iter(self._graphs.values()), [])
        graphs: list[torch.cuda.CUDAGraph] = []
        for layer in range(self._shape.num_layers):
            graph, _ = record(partial(self._before_attention, layer, size), others or graphs)
            graphs.append(graph)
        self._graphs[size] = graphs

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        context: StoredContext,
        rows: torch.Tensor | None = None,
        num_layers: int | None = None,
    ) -> torch.Tensor:
        """See FusedDecoder.forward."""
        buffers = self._buffers(len(token_ids))
        if buffers.in_use or len(token_ids) > self._max_tokens or self._decoder.adapters_are_active:
            return self._decoder.forward(token_ids, positions, context, rows, num_layers)
        buffers.in_use = True
        try:
            return self._forward(token_ids, positions, context, rows, num_layers)
        finally:
            buffers.in_use = False

    def _forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        context: StoredContext,
        rows: torch.Tensor | None,
        num_layers: int | None,
    ) -> torch.Tensor:
        num_tokens, size = len(token_ids), padded(len(token_ids))
        if self._records and size not in self._graphs:
            self._capture(size)
        buffers = self._buffers(size)
        buffers.token_ids[:num_tokens] = token_ids
        buffers.positions[:num_tokens] = positions
        buffers.slots[:, :num_tokens] = context.slots
        buffers.slots[:, num_tokens:size] = NOWHERE
        query = buffers.qkv[:num_tokens].view(num_tokens, -1, self._shape.head_dim)[:, : self._shape.num_heads]

        def before_attention(layer: int, attended: torch.Tensor | None) -> torch.Tensor:
            if attended is not None:
                buffers.attended[:num_tokens] = attended
            if self._records:
                self._graphs[size][layer].replay()
            else:
                self._before_attention(layer, size)
            return query

        return self._decoder.run_layers(before_attention, buffers.residual[:num_tokens], context, rows, num_layers)

    def _before_attention(self, layer: int, size: int) -> None:
        """All between the attention of the layer before and this one's, for rows [0, size) of the buffers."""
        decoder, buffers = self._decoder, self._buffers(size)
        residual, qkv, cos, sin = (rows[:size] for rows in (buffers.residual, buffers.qkv, buffers.cos, buffers.sin))
        if layer == 0:
            embedded = decoder.embed(buffers.token_ids[:size], buffers.positions[:size])
            for rows, values in zip((residual, cos, sin), embedded, strict=True):
                rows.copy_(values)
            decoder.first_qkv(residual, qkv)
        else:
            decoder.mix(layer - 1, buffers.attended[:size], residual, qkv)
        decoder.store(layer, qkv, cos, sin, buffers.slots[layer, :size], self._storage)


def padded(num_tokens: int) -> int:
    """The size that a step of so many tokens is filled up to."""
    if num_tokens > SIZE_STEP:
        step = SIZE_STEP if num_tokens <= SHORT_TOKENS else LONG_SIZE_STEP
        return -(-num_tokens // step) * step
    return max(MIN_SIZE, 1 << (num_tokens - 1).bit_length())


def sizes(max_tokens: int) -> list[int]:
    """All of them, for steps of up to `max_tokens`."""
    return sorted({padded(num_tokens) for num_tokens in range(1, max_tokens + 1)})
