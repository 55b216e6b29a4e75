"""A faster way to the same answers on a GPU: many prompts of one recipe at once, in one padded batch, greedy.

The engine serves requests that come and go; an evaluation knows all of them beforehand and may run those of one
recipe and about one length together, with one attention call a layer. Same rule (DESIGN §3), other code: tests hold
it to the engine.

    rows   | prompt 0 .......... pad | prompt 1 ............. |   [batch, longest prompt], then a column per new token

Padding follows the prompt, so no query of a prompt sees it; what is generated overwrites it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from swaa_runtime.attention.dense import Partial, dense_attention_math, merge
from swaa_runtime.model.loader import LoadedModel
from swaa_runtime.recipe import LayerRule

FAR_BELOW = -1e30
"""A score that softmax turns to 0; finite, so that a row which sees nothing of a range has weight 0 there, not NaN."""


class BatchKernel(Protocol):
    """Causal attention of the last positions of each sequence over its keys, all of them or a window."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        stops: torch.Tensor,
        window: int | None,
        scale: float,
    ) -> Partial:
        """Attend.

        Args:
            query: [batch, queries, num_heads, head_dim]; key, value: [batch, keys, num_kv_heads, head_dim], contiguous.
            stops: int32 [batch]: the last query of sequence b is at position stops[b] - 1.
        """
        ...


class DenseKernel:
    """Written out, with a mask: any device, any dtype; memory of queries times keys."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        stops: torch.Tensor,
        window: int | None,
        scale: float,
    ) -> Partial:
        """See BatchKernel.attend."""
        count = query.shape[1]
        at = stops[:, None] - count + torch.arange(count, device=query.device)  # [batch, queries]
        keys = torch.arange(key.shape[1], device=query.device)
        seen = keys <= at[:, :, None]
        if window is not None:
            seen &= keys > at[:, :, None] - window
        return _masked_attention(query, key, value, seen, scale)


class FlashKernel:
    """torch's flash attention on CUDA, which knows windows and sequences of different lengths."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        stops: torch.Tensor,
        window: int | None,
        scale: float,
    ) -> Partial:
        """See BatchKernel.attend."""
        batch, count, num_heads, head_dim = query.shape
        num_keys = key.shape[1]
        ends = torch.arange(batch + 1, dtype=torch.int32, device=query.device)
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            query.reshape(batch * count, num_heads, head_dim),
            key.flatten(0, 1),
            value.flatten(0, 1),
            ends * count,
            ends * num_keys,
            count,
            num_keys,
            0.0,
            window is None,
            False,
            scale=scale,
            window_size_left=None if window is None else window - 1,
            window_size_right=None if window is None else 0,
            seqused_k=stops,
        )
        return (
            out.view(batch, count, num_heads, head_dim).transpose(1, 2),
            lse.view(num_heads, batch, count).transpose(0, 1),
        )


@dataclass(slots=True)
class BatchState:
    """Where a batch stands, and its keys and values: per layer [batch, capacity, num_kv_heads, head_dim].

    Attributes:
        prompt_stops, stops: int32 [batch], ends of the prompts, and of what the present forward computes.
        count: positions per sequence in the present forward.
    """

    rules: Sequence[LayerRule]
    prompt_stops: torch.Tensor
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    kernel: BatchKernel
    stops: torch.Tensor
    count: int


class BatchContext:
    """The attention context (`swaa_runtime.attention.backend.AttentionContext`) of one forward over a padded batch."""

    def __init__(self, state: BatchState, prefill: bool) -> None:
        self._state = state
        self._prefill = prefill

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See AttentionContext.attend; rows are sequence by sequence, `count` positions each."""
        state, rule = self._state, self._state.rules[layer]
        batch, count = state.stops.shape[0], state.count
        rows = query.transpose(0, 1).reshape(batch, count, query.shape[0], -1)
        self._store(layer, key, value)
        keys, values = state.keys[layer], state.values[layer]
        if self._prefill:
            # Every row counts from the padded end here; padding comes after the prompt and is seen by itself only.
            keys, values = keys[:, :count].contiguous(), values[:, :count].contiguous()
            stops = torch.full_like(state.stops, count)
            out = self._by_rule(rule, rows, keys, values, stops, scale)
            if rule.window is not None and rule.full_tail:
                self._tail(rule, rows, keys, values, scale, out)
        elif rule.window is None or rule.full_decode:
            out = state.kernel.attend(rows, keys, values, state.stops, None, scale)[0]
        else:
            out = self._by_rule(rule, rows, keys, values, state.stops, scale)
        return out.transpose(1, 2).reshape(batch * count, query.shape[0], -1)

    def _store(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        state = self._state
        batch, count = state.stops.shape[0], state.count
        for cache, new in ((state.keys[layer], key), (state.values[layer], value)):
            parts = new.transpose(0, 1).reshape(batch, count, new.shape[0], -1)
            if self._prefill:
                cache[:, :count] = parts
            else:
                cache[torch.arange(batch, device=cache.device), (state.stops - 1).long()] = parts[:, 0]

    def _by_rule(
        self,
        rule: LayerRule,
        rows: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        stops: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Everything, or window and sinks, [batch, num_heads, count, head_dim]."""
        band = self._state.kernel.attend(rows, keys, values, stops, rule.window, scale)
        if rule.window is None or rule.sink_tokens == 0:
            return band[0]
        return _with_sinks(rule.window, rule.sink_tokens, rows, keys, values, stops, scale, band)

    def _tail(
        self,
        rule: LayerRule,
        rows: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scale: float,
        out: torch.Tensor,
    ) -> None:
        """Let the last prompt tokens see everything: overwrites their part of `out`."""
        prompt_stops = self._state.prompt_stops
        # A prompt shorter than the tail indexes rows before its first: these wrap to its padding, which nobody reads.
        count = min(rule.full_tail, rows.shape[1])
        sequences = torch.arange(rows.shape[0], device=rows.device)[:, None]
        at = (prompt_stops[:, None] - count + torch.arange(count, device=rows.device)).long()
        tail = self._state.kernel.attend(rows[sequences, at], keys, values, prompt_stops, None, scale)[0]
        out.transpose(1, 2)[sequences, at] = tail.transpose(1, 2)


def batch_kernel(device: torch.device) -> BatchKernel:
    """The kernel for a device."""
    return FlashKernel() if device.type == "cuda" else DenseKernel()


class BatchGenerator:
    """Greedy answers to many prompts under one recipe. One batch at a time."""

    def __init__(self, loaded: LoadedModel, kernel: BatchKernel) -> None:
        self._loaded = loaded
        self._decoder: Any = loaded.model.base_model
        self._lm_head: Any = loaded.model.get_output_embeddings()
        self._kernel = kernel
        self._device: torch.device = loaded.model.device

    @torch.inference_mode()
    def start(
        self, prompts: Sequence[Sequence[int]], rules: Sequence[LayerRule], max_new_tokens: int
    ) -> tuple[BatchState, list[int]]:
        """Prefill; returns the state and each prompt's first token."""
        shape = self._loaded.shape
        lengths = [len(prompt) for prompt in prompts]
        count, batch = max(lengths), len(prompts)
        size = (batch, count + max_new_tokens, shape.num_kv_heads, shape.head_dim)
        stops = torch.tensor(lengths, dtype=torch.int32, device=self._device)

        def caches() -> list[torch.Tensor]:
            empty = torch.zeros(size, dtype=self._loaded.model.dtype, device=self._device)
            return [empty, *(torch.zeros_like(empty) for _ in range(shape.num_layers - 1))]

        state = BatchState(rules, stops, caches(), caches(), self._kernel, stops, count)
        padded = torch.zeros(batch, count, dtype=torch.int64)
        for row, prompt in zip(padded, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        positions = torch.arange(count, device=self._device).repeat(batch)
        hidden = self._forward(state, padded.to(self._device).flatten(), positions, prefill=True)
        last = torch.arange(batch, device=self._device) * count + stops - 1
        return state, self._pick(hidden[last])

    @torch.inference_mode()
    def step(self, state: BatchState, token_ids: Sequence[int]) -> list[int]:
        """Compute one more token of each sequence; returns the next ones."""
        state.stops = state.stops + 1
        state.count = 1
        ids = torch.tensor(token_ids, dtype=torch.int64, device=self._device)
        return self._pick(self._forward(state, ids, (state.stops - 1).long(), prefill=False))

    def _forward(self, state: BatchState, ids: torch.Tensor, positions: torch.Tensor, prefill: bool) -> torch.Tensor:
        out = self._decoder(
            input_ids=ids[None],
            position_ids=positions[None],
            use_cache=False,
            swaa_context=BatchContext(state, prefill),
        )
        hidden: torch.Tensor = out.last_hidden_state[0]
        return hidden

    def _pick(self, hidden: torch.Tensor) -> list[int]:
        picked: list[int] = self._lm_head(hidden).float().argmax(-1).tolist()
        return picked


def _with_sinks(
    window: int,
    sink_tokens: int,
    rows: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    stops: torch.Tensor,
    scale: float,
    band: Partial,
) -> torch.Tensor:
    """Add to a window's attention the sinks that lie before it: disjoint key ranges merge by log-sum-exp."""
    count = rows.shape[1]
    at = stops[:, None] - count + torch.arange(count, device=rows.device)
    sinks = torch.arange(min(sink_tokens, keys.shape[1]), device=rows.device)
    seen = sinks <= at[:, :, None] - window
    return merge(_masked_attention(rows, keys[:, : len(sinks)], values[:, : len(sinks)], seen, scale), band)


def _masked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor, scale: float
) -> Partial:
    """Shapes as in BatchKernel.attend; `seen` is bool [batch, queries, keys]."""
    bias = torch.where(seen, 0.0, FAR_BELOW)[:, None, None]
    return dense_attention_math(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale, bias=bias)
