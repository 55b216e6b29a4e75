"""The numbers of a model that memory and planning need. Plain data: whoever plans need not load the model, or torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from swaa_runtime.config import KVDtypeName

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of one model; `dtype` is that of its weights and KV, by torch's name for it."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_model_tokens: int
    dtype: str

    @property
    def bytes_per_token_layer(self) -> int:
        """Bytes of K and V together of one token in one layer."""
        return 2 * self.num_kv_heads * self.head_dim * DTYPE_BYTES[self.dtype]

    def pool_bytes_per_token_layer(self, kv_dtype: KVDtypeName) -> int:
        """The same as a pool keeps them: in 8 bits each head has a scale of 4 bytes beside its K, and beside its V."""
        if kv_dtype == "model":
            return self.bytes_per_token_layer
        return 2 * self.num_kv_heads * (self.head_dim + 4)

    def part(self, size: int) -> ModelShape:
        """What one of `size` ranks computes of it, that share out its heads."""
        return replace(self, num_heads=self.num_heads // size, num_kv_heads=self.num_kv_heads // size)
