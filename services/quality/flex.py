"""Packed attention by FlexAttention: compiled, blocks that nobody sees are skipped, gradients included. For CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from services.quality.packing import DenseKernel, PackedKernel, VisibleRanges

MaskMod = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class FlexKernel:
    """See PackedKernel. Compiled once for each T: the ranges are tensors, so that other recipes compile nothing."""

    def __init__(self) -> None:
        self._attend: Any = torch.compile(flex_attention, dynamic=False)
        self._block_mask: Any = torch.compile(create_block_mask, dynamic=False)

    def prepare(self, ranges: VisibleRanges) -> object:
        """See PackedKernel.prepare."""
        rows = ranges.low.shape[0]
        return self._block_mask(range_mask(ranges), None, None, rows, rows, device=ranges.low.device)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: object, scale: float
    ) -> torch.Tensor:
        """See PackedKernel.attend."""
        assert isinstance(mask, BlockMask)  # noqa: S101 - what prepare returned
        out: torch.Tensor = self._attend(
            query[None], key[None], value[None], block_mask=mask, scale=scale, enable_gqa=True
        )
        return out[0]


def range_mask(ranges: VisibleRanges) -> MaskMod:
    """`VisibleRanges.mask` as FlexAttention asks for it: one (query, key) at a time."""
    first, sink_stop, low = ranges.first, ranges.sink_stop, ranges.low

    def sees(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        sink = (key >= first[query]) & (key < sink_stop[query])
        return (key <= query) & (sink | (key >= low[query]))

    return sees


def packed_kernel(device: torch.device) -> PackedKernel:
    """The kernel for a device."""
    return FlexKernel() if device.type == "cuda" else DenseKernel()
