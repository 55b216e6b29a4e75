"""Programmatic dependent launch, of Hopper and newer: a kernel starts while the one before it still ends.

It hides launches, and of a matmul the first loads of its weight. A kernel that is launched so calls `wait_for_previous`
before it touches anything that another kernel writes, or reads and it overwrites: which is all but the model's weights.
As each waits until the one before has ended, and that one did the same, all earlier ones have ended then.
"""

from __future__ import annotations

import torch
import triton
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

FEW_TOKENS = 64
"""Of a step that has no more, starting a small kernel counts beside its time."""


def launch_options(device: torch.device, num_rows: int) -> dict[str, bool]:
    """Arguments of a small kernel that has a constexpr PDL: whether it is launched so, which it is of few rows."""
    return early_launch(device) if num_rows <= FEW_TOKENS else {"PDL": False}


def early_launch(device: torch.device) -> dict[str, bool]:
    """The same of any number of rows, where the device can."""
    return {"PDL": True, "launch_pdl": True} if can_overlap(device) else {"PDL": False}


def early_next(device: torch.device) -> dict[str, bool]:
    """The same of a large kernel: it lets a small one after it start, but is launched as any other.

    Waiting beside the one before, it would take from that one what it is to run on (benchmarks/LOG.md).
    """
    return {"PDL": can_overlap(device)}


def can_overlap(device: torch.device) -> bool:
    """Whether the device can launch so."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@triton.jit
def wait_for_previous():
    """Let the next kernel start, which waits likewise, and wait until the one before this has ended."""
    gdc_launch_dependents()
    gdc_wait()
