"""What an engine is built with. Checked once, on construction; never written to afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from swaa_runtime.errors import InvalidRequest

AttentionBackendName = Literal["windowed", "reference", "triton"]
DenseAttentionName = Literal["auto", "cudnn", "flash"]
KVDtypeName = Literal["model", "int8", "fp8"]
SchedulingPolicy = Literal["slack", "fcfs"]


FAIR_SHARE = 1 / 8
"""Part of a step's prefill that is divided equally, so that nothing that runs ever stands still: a prompt of n tokens
has its first token after ceil(n / (FAIR_SHARE * prefill tokens of a step / max_running)) steps with prompts at the
latest."""

MIN_PREFILL_TOKENS = 16
"""A step runs so much prefill, if there is any, however soon the next token of a decoding request is due."""

TPOT_SHARE = 0.95
"""Next tokens are due after this part of their target, as a step may take longer than predicted."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes and choices of one engine.

    Attributes:
        block_size_tokens: tokens per block of KV memory.
        num_blocks: blocks in the pool, over all layers; block 0 is the null block and never handed out.
        max_step_tokens: token budget of one step: no step runs more tokens than this, over all requests.
        interrupt_tokens: requests without a token that have at most so many tokens to compute, together, may run
            between the layers of a step of at least so many (see `interruption`); 0: none may.
        max_running: requests that hold KV memory at a time.
        max_waiting: requests that may wait for admission; one more is refused.
        max_model_tokens: longest sequence (prompt and generated) of one session.
        max_state_bytes: states above this are not exported: of such sessions only tokens are kept.
        export_step_bytes: a step copies about this much of states out of the pool, and as much in, so that a large
            state does not hold up the tokens of others.
        max_queued_ms: a request is refused while prompts are predicted to take longer than this; None: no bound.
        max_swapped_bytes: host memory for the states of preempted requests; 0: nothing is preempted.
        policy: "slack" (least slack first, see the scheduler) or "fcfs" (strictly as they came, to compare with).
        attention_backend: "windowed" (linear, torch alone), "triton" (linear, our kernels, for GPUs) or "reference"
            (dense, slow, obviously right).
        skip_unseen: run only layers of which later tokens see something (`visibility.layers_needed`).
        dense_attention: what computes a prompt's queries that see everything under the "triton" backend: "flash"
            (flash-attn), "cudnn", or "auto", the faster. What cannot be had is an error.
        kv_dtype: what K and V are kept in: as the "model" computes them, or "int8" or "fp8" with scales (lossy: see
            `kv_cache.quantise`), under the "triton" backend alone.
    """

    num_blocks: int
    max_model_tokens: int
    block_size_tokens: int = 32
    max_step_tokens: int = 1024
    interrupt_tokens: int = 2048
    max_running: int = 64
    max_waiting: int = 256
    max_state_bytes: int = 4 << 30
    export_step_bytes: int = 32 << 20
    max_queued_ms: float | None = None
    max_swapped_bytes: int = 1 << 30
    policy: SchedulingPolicy = "slack"
    attention_backend: AttentionBackendName = "windowed"
    skip_unseen: bool = False
    dense_attention: DenseAttentionName = "auto"
    kv_dtype: KVDtypeName = "model"

    def __post_init__(self) -> None:
        for field in ("block_size_tokens", "max_step_tokens", "max_running", "max_model_tokens", "export_step_bytes"):
            if getattr(self, field) < 1:
                raise InvalidRequest(field, getattr(self, field), "must be at least 1")
        if self.num_blocks < 2:
            raise InvalidRequest("num_blocks", self.num_blocks, "must be at least 2: one of them is the null block")
        if self.max_step_tokens < self.max_running:
            raise InvalidRequest(
                "max_step_tokens", self.max_step_tokens, f"must be at least max_running ({self.max_running})"
            )
        if self.max_queued_ms is not None and not self.max_queued_ms >= 0:
            raise InvalidRequest("max_queued_ms", self.max_queued_ms, "must be at least 0, or None")
        for field in ("max_swapped_bytes", "interrupt_tokens"):
            if getattr(self, field) < 0:
                raise InvalidRequest(field, getattr(self, field), "must be at least 0")
        for field, choices in (
            ("policy", SchedulingPolicy),
            ("attention_backend", AttentionBackendName),
            ("dense_attention", DenseAttentionName),
            ("kv_dtype", KVDtypeName),
        ):
            if getattr(self, field) not in get_args(choices):
                allowed = " or ".join(repr(name) for name in get_args(choices))
                raise InvalidRequest(field, getattr(self, field), f"must be {allowed}")
        for field, default in (("dense_attention", "auto"), ("kv_dtype", "model")):
            if getattr(self, field) != default and self.attention_backend != "triton":
                raise InvalidRequest(field, getattr(self, field), "needs attention_backend 'triton'")
