"""Dense attention of a sequence's newest queries over everything up to themselves, by the fastest kernel there is.

    position    0                     start            stop
    keys        |#######################|################|
    queries                             |################|    query i sees the keys up to position start + i

flash-attn takes this as one call, since its causal mask ends at the last key; it prepares itself once. cuDNN's begins
at the first key, so there it is pieces, merged by log-sum-exp, of few different sizes: for each pair of sizes (queries,
keys) it makes a plan, which takes 0.1 s. So queries and past are cut into powers of two:

    past 5,120, queries 3,072       2,048 queries over 4,096 + 1,024 keys and their own, then
                                    1,024 queries over 4,096 + 2,048 + 1,024 keys and their own

Shapes: query [n, num_heads, head_dim]; key, value [stop, num_kv_heads, head_dim]; the result is the query's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
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
MAX_PIECE = 1 << 17
"""Of a longer past there are several such pieces: no sequence has one that nobody prepared for."""

WARM_TOKENS = 512
"""Enough for flash-attn to take the way of a long prompt."""


class PrefixAttention(Protocol):
    """One way to compute it.

    Attributes:
        name: for logs.
        query_multiple: it is best given queries that start and end at multiples of so many positions.
    """

    @property
    def name(self) -> str: ...
    @property
    def query_multiple(self) -> int: ...

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """The result for the last n of `stop` positions; see the module."""
        ...

    def warm_up(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> None:
        """Do once what would be waited for: afterwards no such `attend`, of at most so many queries and keys, is slow.

        Strides count, and so does the thread, where plans are a thread's own (cuDNN's, in torch).
        """
        ...


@dataclass(frozen=True, slots=True)
class PiecewisePrefix:
    """By `dense_attention`: some queries' own keys causally, their past in pieces; then the next queries."""

    name: str
    query_multiple: int = 1024

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """See PrefixAttention.attend."""
        past = len(key) - len(query)
        query, key, value = (rows.transpose(0, 1).unsqueeze(0) for rows in (query, key, value))
        outs = []
        for first, last in pairwise(pieces(query.shape[2])):
            start, stop = past + first, past + last
            rows, own = query[:, :, first:last], slice(start, stop)
            parts: list[Partial] = [dense_attention(rows, key[:, :, own], value[:, :, own], scale, causal=True)]
            for low, high in pairwise(pieces(start)):
                parts.append(dense_attention(rows, key[:, :, low:high], value[:, :, low:high], scale))
            outs.append(merge_partials(parts)[0].transpose(0, 1))
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def warm_up(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> None:
        """See PrefixAttention.warm_up. Of cuDNN: 0.1 s for each of about log2(queries / 1,024) log2(keys / 1,024)."""
        if self.name != "cudnn":
            return
        query, key, value = (rows.transpose(0, 1).unsqueeze(0) for rows in (query, key, value))
        for num_queries in self._sizes(query):
            rows, own = query[:, :, :num_queries], slice(num_queries)
            dense_attention(rows, key[:, :, own], value[:, :, own], scale, causal=True)
            for num_keys in self._sizes(key):
                dense_attention(rows, key[:, :, :num_keys], value[:, :, :num_keys], scale)

    def _sizes(self, rows: torch.Tensor) -> list[int]:
        """Of pieces of up to so many rows, [1, heads, rows, head_dim], at multiples of `query_multiple`."""
        return [self.query_multiple * size for size in doubled(min(rows.shape[2], MAX_PIECE) // self.query_multiple)]


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

    def warm_up(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> None:
        """See PrefixAttention.warm_up. Version 4 compiles for seconds when it is first called."""
        self.attend(query[:WARM_TOKENS], key[: 2 * WARM_TOKENS], value[: 2 * WARM_TOKENS], scale)


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
    """The way that `choice` names.

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


def doubled(most: int) -> list[int]:
    """1, 2, 4 and so on, up to `most`."""
    return [1 << bit for bit in range(most.bit_length())]


def pieces(num_tokens: int) -> list[int]:
    """Edges that cut [0, num_tokens) into pieces of few different sizes: powers of two, the largest first."""
    edges = [*range(0, num_tokens + 1, MAX_PIECE)]
    left = num_tokens - edges[-1]
    for bit in reversed(range(left.bit_length())):
        if left & (1 << bit):
            edges.append(edges[-1] + (1 << bit))
    return edges
