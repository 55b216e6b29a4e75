"""The process of a rank other than the first: loads its part of the model, then obeys rank 0 until that is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from swaa_runtime.group import Group
from swaa_runtime.model.loader import LoadedModel
from swaa_runtime.model.shards import shard_model
from swaa_runtime.tensor_parallel.orders import Order, Rank

LOADED = "loaded"
"""What a worker says once it has its model. Anything else is why it ends."""

Load = Callable[[torch.device], LoadedModel]
"""Loads the whole model, to the CPU or to a rank's device. Pickled, so a function of a module, or a partial of one."""


@dataclass(frozen=True, slots=True)
class WorkerTask:
    """What a worker is started with.

    Attributes:
        folder: where ranks meet; see Group.
        num_threads: of torch's own, on a CPU.
    """

    rank: int
    size: int
    device: torch.device
    folder: Path
    load: Load
    num_pieces: int
    num_threads: int


def run_worker(task: WorkerTask, pipe: Connection) -> None:
    """Main function of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for rank 0, whose end is ours
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        torch.set_num_threads(task.num_threads)
        if task.device.type == "cuda":
            torch.cuda.set_device(task.device)
        loaded = task.load(task.device)
        pipe.send(LOADED)
        group = Group(task.rank, task.size, task.folder, task.device, task.num_pieces)
        _obey(Rank(group, shard_model(loaded, group)), pipe)
    except EOFError:
        os._exit(0)  # no destructors: a group's would wait for ranks that are gone
    except BaseException as exc:
        traceback.print_exc()
        pipe.send(f"{type(exc).__name__}: {exc}")
        os._exit(1)


def _obey(rank: Rank, pipe: Connection) -> None:
    with torch.inference_mode():
        while True:
            order: Order = pipe.recv()
            order.obey(rank)


def _end_with_parent() -> None:
    """End even in the midst of an operation that waits for rank 0 for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101 - it has started us
    wait([parent.sentinel])
    os._exit(1)
