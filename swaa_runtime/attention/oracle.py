"""The oracle: dense attention with the mask of DESIGN §3, in float32. Slow, obviously right; all else is held to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from swaa_runtime.recipe import LayerRule
from swaa_runtime.visibility import Turn


def visibility_mask(
    rule: LayerRule, turns: Sequence[Turn], start: int, stop: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Which key each query sees: bool [stop - start, stop], queries at positions [start, stop), keys at [0, stop)."""
    query = torch.arange(start, stop, device=device)[:, None]
    key = torch.arange(stop, device=device)[None, :]
    causal = key <= query
    if rule.window is None:
        return causal
    full = torch.zeros_like(query, dtype=torch.bool)
    for turn in turns:
        in_turn = (query >= turn.start) & (query < (stop if turn.stop is None else turn.stop))
        generated = in_turn & (query >= turn.generated_start)
        tail = in_turn & ~generated & (query >= turn.generated_start - rule.full_tail)
        full = full | tail | (generated & rule.full_decode)
    return causal & (full | (query - key < rule.window) | (key < rule.sink_tokens))


def oracle_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rule: LayerRule,
    turns: Sequence[Turn],
    start: int,
    scale: float,
) -> torch.Tensor:
    """Attention of queries at positions [start, start + C) over keys at [0, start + C).

    Args:
        query: [num_heads, C, head_dim].
        key, value: [num_kv_heads, start + C, head_dim].

    Returns:
        [C, num_heads, head_dim], in the query's dtype.
    """
    group = query.shape[0] // key.shape[0]
    key = key.float().repeat_interleave(group, dim=0)
    value = value.float().repeat_interleave(group, dim=0)
    scores = query.float() @ key.transpose(-1, -2) * scale
    mask = visibility_mask(rule, turns, start, start + query.shape[1], query.device)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
    return (weights @ value).transpose(0, 1).to(query.dtype)


class OracleContext:
    """An attention context (see `backend.AttentionContext`) without KV memory: one whole sequence in one forward."""

    def __init__(self, rules: Sequence[LayerRule], turns: Sequence[Turn]) -> None:
        self._rules = rules
        self._turns = turns

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """As `AttentionContext.attend`, for positions [0, T)."""
        return oracle_attention(query, key, value, self._rules[layer], self._turns, 0, scale)
