"""How much of a GPU's memory the KV pool may take, once the weights are on it."""

from __future__ import annotations

from swaa_runtime.config import EngineConfig
from swaa_runtime.errors import ModelNotSupported
from swaa_runtime.model.layer_graphs import MAX_TOKENS
from swaa_runtime.shape import DTYPE_BYTES, ModelShape

CPU_KV_MIB = 2048
"""What "auto" is on a CPU, where other programs want memory too."""

RESERVED_BYTES = 1 << 30
"""For what is not counted: workspaces of libraries, compiled kernels, captured graphs."""

USED_SHARE = 0.95
"""Of the rest: allocators leave gaps."""

PAST_PIECES = 20
"""Most parts of a dense chunk's attention that wait to be merged: so many has a past of under 2^20 tokens."""


def step_bytes(
    shape: ModelShape, hidden_size: int, intermediate_size: int, max_tokens: int, config: EngineConfig
) -> int:
    """What a step of T = `max_step_tokens` needs at most beside weights and KV pool, in bytes.

    activations   T x (4 hidden + 3 intermediate + 2 (heads + 2 kv_heads) head_dim)         in the model's dtype
    dense chunks  T x heads x head_dim x (PAST_PIECES in the model's dtype + 2 in float32)   parts and their sum
                  + K and V of the longest sequence in one layer, gathered; of 8 bits also as they are kept
    sampling      max_running x vocab_size                                        in float32, thrice
    decoding      layers x max_running x blocks of the longest sequence           block ids in int32
    short steps   T up to MAX_TOKENS: activations, and twice what is between layers     graphs have their own memory

    Between two layers it keeps T x 2 (hidden + (heads + 2 kv_heads) head_dim), beside which one of `interrupt_tokens`
    needs its own.
    """
    size = DTYPE_BYTES[shape.dtype]
    width = shape.num_heads * shape.head_dim
    qkv = width + 2 * shape.num_kv_heads * shape.head_dim
    activations = size * (4 * hidden_size + 3 * intermediate_size + 2 * qkv)
    dense = width * (PAST_PIECES * size + 2 * 4)
    gathered = max_tokens * shape.bytes_per_token_layer
    if config.kv_dtype != "model":
        gathered += max_tokens * shape.pool_bytes_per_token_layer(config.kv_dtype)
    logits = 3 * 4 * config.max_running * shape.vocab_size
    tables = 4 * shape.num_layers * config.max_running * -(-max_tokens // config.block_size_tokens)
    rows = config.max_step_tokens * (activations + dense)
    if 0 < config.interrupt_tokens <= config.max_step_tokens:
        paused = config.max_step_tokens * size * 2 * (hidden_size + qkv)
        rows = max(rows, paused + config.interrupt_tokens * (activations + dense))
    graphed = min(config.max_step_tokens, MAX_TOKENS) * (activations + size * 4 * (hidden_size + qkv))
    return rows + gathered + logits + tables + graphed


def kv_pool_bytes(free_bytes: int, needed_bytes: int) -> int:
    """USED_SHARE of what is free beside a step's needs and RESERVED_BYTES.

    Raises:
        ModelNotSupported: if nothing is left.
    """
    left = int(USED_SHARE * (free_bytes - needed_bytes - RESERVED_BYTES))
    if left <= 0:
        wanted = (needed_bytes + RESERVED_BYTES) >> 20
        raise ModelNotSupported(
            f"the GPU has {free_bytes >> 20} MiB left beside the weights, and a step needs {wanted}: "
            "lower max_step_tokens or max_running, or set kv_memory_mib"
        )
    return left
