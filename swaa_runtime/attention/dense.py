"""Dense attention over one range of keys, returning the log-sum-exp too, so that disjoint ranges merge exactly.

Shapes: query [N, num_heads, Q, head_dim]; key, value [N, num_kv_heads, K, head_dim], any strides with a contiguous last
dimension. N is a batch of independent tiles. Result: out [N, num_heads, Q, head_dim], lse float32 [N, num_heads, Q].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

Partial = tuple[torch.Tensor, torch.Tensor]


def dense_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    *,
    causal: bool = False,
    bias: torch.Tensor | None = None,
) -> Partial:
    """Softmax attention with its log-sum-exp.

    Args:
        causal: query i sees keys 0..i (needs Q == K).
        bias: added to the scores, [Q, K], the query's dtype; 0 or -inf.
    """
    if query.device.type == "cpu":
        # torch's own CPU flash attention: blocked, never holds [Q, K], and takes grouped KV heads as they are.
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=bias, scale=scale
        )
        return out, lse
    if query.device.type == "cuda" and bias is None and query.dtype in (torch.bfloat16, torch.float16):
        return _cudnn_attention(query, key, value, scale, causal)
    return dense_attention_math(query, key, value, scale, causal=causal, bias=bias)


def _cudnn_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, causal: bool
) -> Partial:
    """cuDNN's fused attention, which takes grouped KV heads as they are; twice as fast as torch's flash on an H100."""
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query, key, value, None, True, 0.0, causal, False, scale=scale
    )
    return out, lse.squeeze(-1)


def dense_attention_math(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    *,
    causal: bool = False,
    bias: torch.Tensor | None = None,
) -> Partial:
    """The same, written out: what `dense_attention` is tested against, and the path where torch has no kernel for it.

    Here `bias` may be anything that broadcasts to [N, num_kv_heads, num_heads // num_kv_heads, Q, K].
    """
    num_tiles, num_heads, num_queries, head_dim = query.shape
    num_kv_heads = key.shape[1]
    grouped = query.reshape(num_tiles, num_kv_heads, -1, num_queries, head_dim)
    scores = (grouped @ key.unsqueeze(2).transpose(-1, -2)).float() * scale
    if bias is not None:
        scores = scores + bias
    if causal:
        future = torch.ones(num_queries, num_queries, dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    lse = scores.logsumexp(dim=-1)
    out = (scores - lse.unsqueeze(-1)).exp().to(value.dtype) @ value.unsqueeze(2)
    return out.reshape(num_tiles, num_heads, num_queries, head_dim), lse.reshape(num_tiles, num_heads, num_queries)


def merge(first: Partial, second: Partial) -> torch.Tensor:
    """Attention over the union of two disjoint, non-empty key ranges, from attention over each.

    With s = logsumexp over a range, the union's weights are softmax over the two s: out = sum exp(s_i - s) out_i.
    """
    (out_a, lse_a), (out_b, lse_b) = first, second
    weight = torch.sigmoid(lse_a - lse_b).unsqueeze(-1).to(out_a.dtype)
    return torch.lerp(out_b, out_a, weight)


def merge_partials(parts: Sequence[Partial]) -> torch.Tensor:
    """As `merge`, of any number of ranges: float32 inside, the parts' dtype out."""
    if len(parts) == 1:
        return parts[0][0]
    weights = torch.stack([lse for _, lse in parts]).softmax(0).unsqueeze(-1)
    total = sum(out * weight for (out, _), weight in zip(parts, weights, strict=True))
    assert isinstance(total, torch.Tensor)  # noqa: S101 - there is at least one part
    return total.to(parts[0][0].dtype)
