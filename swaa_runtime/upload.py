"""From numpy arrays on the host to tensors on a device, without waiting for it."""

from __future__ import annotations

import numpy as np
import torch


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array as a tensor on the device.

    To a GPU it goes through pinned memory: from other memory CUDA copies only when all that was asked before is done.
    """
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
