"""Programmatic dependent launch, of Hopper and newer: a kernel starts while the one before it still ends.

It hides launches, and of a matmul the first loads of its weight. A kernel that is launched so calls `wait_for_previous`
before it touches anything that another kernel writes, or reads and it overwrites: which is all but the model's weights.
As each waits until the one before has ended, and that one did the same, all earlier ones have ended then.
"""

from __future__ import annotations

import torch
import triton
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


def launch_options(device: torch.device, num_rows: int) -> dict[str, bool]:
    """Arguments of a kernel that has a constexpr PDL: whether it is launched so.

    Of one row only: there a launch counts beside its kernel. With 16 it costs more than it brings (benchmarks/LOG.md).
    """
    return early_launch(device) if num_rows == 1 else {"PDL": False}


def early_launch(device: torch.device) -> dict[str, bool]:
    """The same of any number of rows, where the device can: for a small kernel that finishes what a large one began.

    The large one gets PDL alone: it lets the small one start, but is launched as any other.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return {"PDL": False}
    return {"PDL": True, "launch_pdl": True}


@triton.jit
def wait_for_previous():
    """Let the next kernel start, which waits likewise, and wait until the one before this has ended."""
    gdc_launch_dependents()
    gdc_wait()
