"""Processes of one host that compute one model together, each with a part of its heads, and what they tell each other.

The operations are torch's own process groups (NCCL between GPUs, gloo between CPUs), but held as an object: no default
group of the process, so one process may have several after each other. Ranks meet in a folder that only this user may
read, and talk over the loopback interface and the links between the GPUs: nothing listens where others could reach it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch._C._distributed_c10d import FileStore  # torch.distributed has it, but does not say so

LOOPBACK = "127.0.0.1"
LOOPBACK_INTERFACE = "lo"

TIMEOUT_S = 300.0
"""An operation that takes longer is one that another rank does not take part in. Rank 0 notices sooner; see Ranks."""

PIECE_ROWS = 1024
"""Rows of a piece are no fewer (but in tests): smaller matmuls would lose more than hiding a sum behind them gains."""


class Group:
    """One rank's end of it. All ranks must call the same operations in the same order, with the same shapes."""

    def __init__(
        self,
        rank: int,
        size: int,
        folder: Path,
        device: torch.device,
        num_pieces: int = 2,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Meet the other ranks in `folder`; returns when all are there.

        Args:
            folder: empty at first, and for this group alone.
            num_pieces: into so many pieces `pieces` cuts the rows of a long step.

        Raises:
            RuntimeError: if they are not there within `timeout_s`.
        """
        self.rank = rank
        self.size = size
        self.device = device
        self.num_pieces = num_pieces
        self.piece_rows = PIECE_ROWS
        store = FileStore(str(folder / "ranks"), size)
        store.set_timeout(timedelta(seconds=timeout_s))
        make = _nccl if device.type == "cuda" else _gloo
        self._group: Any = make(store, rank, size, timedelta(seconds=timeout_s))
        self.sum(torch.zeros(1, device=device))  # connects; what cannot work fails here

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Add up the tensors of all ranks, in place, and in the stream's order: a CUDA graph may record it."""
        options = distributed.AllreduceOptions()
        options.asyncOp = False
        work = self._group.allreduce([x], options)
        if work is not None:  # NCCL has queued it in the stream, and there is nothing to wait for
            work.wait()
        return x

    def start_sum(self, x: torch.Tensor) -> Callable[[], torch.Tensor]:
        """The same beside what is computed next. The returned function gives the sum, on the same stream."""
        work = self._group.allreduce([x])

        def summed() -> torch.Tensor:
            work.wait()
            return x

        return summed

    def pieces(self, num_rows: int) -> list[slice]:
        """Cut so many rows, so that the sum of one piece is under way while the next is computed."""
        count = max(1, min(self.num_pieces, num_rows // self.piece_rows))
        edges = [num_rows * at // count for at in range(count + 1)]
        return [slice(low, high) for low, high in pairwise(edges)]

    def all_parts(self, part: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's tensor, in the order of ranks: all of one shape and dtype, contiguous."""
        flat = part.view(torch.uint8)  # gloo has not every dtype
        parts = [torch.empty_like(flat) for _ in range(self.size)]
        self._group.allgather([parts], [flat]).wait()
        return [each.view(part.dtype) for each in parts]

    def from_first(self, x: torch.Tensor) -> torch.Tensor:
        """Rank 0's tensor, written to the others' x, which has its shape and dtype."""
        options = distributed.BroadcastOptions()
        options.rootRank = 0
        self._group.broadcast([x.view(torch.uint8)], options).wait()
        return x

    def abort(self) -> None:
        """End operations that wait for a rank which is gone. Any thread may call it; the group is of no use then."""
        self._group.abort()


def _gloo(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    options: Any = distributed.ProcessGroupGloo._Options()  # type: ignore[attr-defined] # of 2.13, not of its stubs
    options._devices = [distributed.ProcessGroupGloo.create_device(hostname=LOOPBACK)]
    options._timeout = timeout
    return distributed.ProcessGroupGloo(store, rank, size, options)


def _nccl(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    os.environ.setdefault("NCCL_SOCKET_IFNAME", LOOPBACK_INTERFACE)  # how ranks find each other; data goes over NVLink
    # High priority: a sum takes its few multiprocessors as they come free, not after all tiles of a matmul beside it.
    options = distributed.ProcessGroupNCCL.Options(is_high_priority_stream=True)
    options._timeout = timeout
    return distributed.ProcessGroupNCCL(store, rank, size, options)
