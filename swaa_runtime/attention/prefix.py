"""Dense attention of a sequence's newest queries over everything up to themselves, by the fastest kernel there is.

    position    0                     start            stop
    keys        |#######################|################|
    queries                             |################|    query i sees the keys up to position start + i

flash-attn takes this as one call, since its causal mask ends at the last key; it prepares itself once. cuDNN's begins
at the first key, so there it is pieces, merged by log-sum-exp, of few different sizes: it prepares itself for each.

Shapes: query [n, num_heads, head_dim]; key, value [stop, num_kv_heads, head_dim]; the result is the query's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import pairwise
from typing import Any, Protocol

import torch

from swaa_runtime.attention.dense import Partial, dense_attention, merge_partials
from swaa_runtime.config import DenseAttentionName
from swaa_runtime.errors import ModelNotSupported
from swaa_runtime.shape import ModelShape

logger = logging.getLogger(__name__)

HALF = (torch.bfloat16, torch.float16)
WARM_TOKENS = 512
"""Enough for flash-attn to take the way of a long prompt."""


class PrefixAttention(Protocol):
    """One way to compute it.

    Attributes:
        name: for logs.
        query_multiple: it is best given multiples of so many queries.
    """

    @property
    def name(self) -> str: ...
    @property
    def query_multiple(self) -> int: ...

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """The result for the last n of `stop` positions; see the module."""
        ...


@dataclass(frozen=True, slots=True)
class PiecewisePrefix:
    """By `dense_attention`: the queries' own keys causally, the past in pieces."""

    name: str
    query_multiple: int = 1024

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """See PrefixAttention.attend."""
        start = len(key) - len(query)
        query, key, value = (rows.transpose(0, 1).unsqueeze(0) for rows in (query, key, value))
        parts: list[Partial] = [dense_attention(query, key[:, :, start:], value[:, :, start:], scale, causal=True)]
        for low, high in pairwise(past_pieces(start)):
            parts.append(dense_attention(query, key[:, :, low:high], value[:, :, low:high], scale))
        return merge_partials(parts)[0].transpose(0, 1)


@dataclass(frozen=True, slots=True)
class FlashPrefix:
    """By flash-attn, whose versions 2, 3 and 4 agree on this much of their interface."""

    name: str
    function: Callable[..., Any]
    query_multiple: int = 1

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """See PrefixAttention.attend."""
        batch = (rows.unsqueeze(0) for rows in (query, key, value))
        result = self.function(*batch, softmax_scale=scale, causal=True)
        out: torch.Tensor = result[0] if isinstance(result, tuple) else result  # some return the log-sum-exp too
        return out.squeeze(0)


@dataclass(frozen=True, slots=True)
class FlashVersion:
    """One of flash-attn's packages.

    Attributes:
        module: where its `flash_attn_func` is.
        architectures: major compute capabilities where it is faster than cuDNN, so taken unasked.
    """

    name: str
    module: str
    architectures: tuple[int, ...]


FLASH_VERSIONS = (
    FlashVersion("flash-attn-3", "flash_attn_interface", (9,)),
    FlashVersion("flash-attn-4", "flash_attn.cute", (9, 10, 11)),
    FlashVersion("flash-attn-2", "flash_attn", (8, 12)),
)
"""In order of preference."""


def make_prefix_attention(choice: DenseAttentionName, shape: ModelShape, device: torch.device) -> PrefixAttention:
    """The way that `choice` names, ready: what it compiles is compiled.

    Raises:
        ModelNotSupported: if what was asked for is not to be had here.
    """
    dtype: torch.dtype = getattr(torch, shape.dtype)
    takes_half = device.type == "cuda" and dtype in HALF
    if choice in ("flash", "cudnn") and not takes_half:
        has = f"{device.type}, {shape.dtype}"
        raise ModelNotSupported(
            f"dense_attention {choice!r} needs a CUDA device and bfloat16 or float16; this is {has}"
        )
    if choice == "cudnn" or not takes_half:
        return PiecewisePrefix("cudnn" if takes_half else "torch")
    flash = find_flash(torch.cuda.get_device_capability(device)[0] if choice == "auto" else None)
    if flash is None:
        if choice == "flash":
            modules = ", ".join(version.module for version in FLASH_VERSIONS)
            raise ModelNotSupported(f"dense_attention 'flash' needs flash-attn: none of {modules} can be imported")
        return PiecewisePrefix("cudnn")
    _warm(flash, shape, dtype, device)
    return flash


def find_flash(architecture: int | None) -> FlashPrefix | None:
    """The preferred version that is installed, of those for a major compute capability or of all."""
    for version in FLASH_VERSIONS:
        if architecture is not None and architecture not in version.architectures:
            continue
        try:
            function = getattr(import_module(version.module), "flash_attn_func", None)
        except ModuleNotFoundError:
            continue
        except ImportError as exc:  # built for another torch, say: there is a reason, which would be missed
            logger.warning("%s is installed but cannot be imported: %s", version.name, exc)
            continue
        if function is not None:  # `flash_attn` is also the bare folder of version 4
            return FlashPrefix(version.name, function)
    return None


def past_pieces(num_tokens: int) -> list[int]:
    """Edges that cut [0, num_tokens) into pieces of few different sizes: powers of two, the largest first."""
    edges = [0]
    for bit in reversed(range(num_tokens.bit_length())):
        if num_tokens & (1 << bit):
            edges.append(edges[-1] + (1 << bit))
    return edges


def _warm(attention: PrefixAttention, shape: ModelShape, dtype: torch.dtype, device: torch.device) -> None:
    """Version 4 compiles for seconds when it is first called: before the first request rather than in it."""
    zeros = partial(torch.zeros, dtype=dtype, device=device)
    query = zeros(WARM_TOKENS, shape.num_heads, shape.head_dim)
    key, value = (zeros(2 * WARM_TOKENS, shape.num_kv_heads, shape.head_dim) for _ in range(2))
    with torch.inference_mode():
        attention.attend(query, key, value, shape.head_dim**-0.5)
