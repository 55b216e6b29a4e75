"""What the engine says of its requests, step by step."""

from __future__ import annotations

from dataclasses import dataclass

from swaa_runtime.kv_cache.slices import KVSlice, SliceKey
from swaa_runtime.request import FinishReason, TokenLogprob


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """A request's prompt is `num_computed_tokens` of `prompt_stop` along, `num_restored_tokens` of them restored."""

    request_id: str
    num_computed_tokens: int
    prompt_stop: int
    num_restored_tokens: int


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One generated token, and the text that became certain with it (may be empty)."""

    request_id: str
    token_id: int
    text: str
    logprob: TokenLogprob | None


@dataclass(frozen=True, slots=True)
class StateSlices:
    """Some slices of a state that is being exported, copied out of the pool."""

    request_id: str
    slices: tuple[KVSlice, ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All slices of a running prefill's state have been exported, but for those confirmed as saved before."""

    request_id: str
    state: ExportedState


@dataclass(frozen=True, slots=True)
class ExportedState:
    """A state after `num_tokens` tokens, as the list of its slices."""

    num_tokens: int
    keys: tuple[SliceKey, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """A request's last output. Times are on time.monotonic's clock.

    Attributes:
        state: what was exported of it, None if nothing was; its blocks then stay parked, else they are free by now.
    """

    request_id: str
    reason: FinishReason
    text: str
    token_ids: tuple[int, ...]
    num_restored_tokens: int
    num_computed_tokens: int
    resident_blocks: int
    peak_blocks: int
    arrival_s: float
    admitted_s: float | None
    first_token_s: float | None
    state: ExportedState | None


Output = PrefillProgress | TokenOutput | StateSlices | Checkpoint | Finished
