"""All ranks, as rank 0 has them: itself, and the others as child processes that it starts, orders, watches and ends.

When one of them is gone, what waits for it is aborted, and all that is asked from then on raises EngineFailed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from swaa_runtime.errors import EngineFailed, ModelNotSupported
from swaa_runtime.group import Group
from swaa_runtime.model.loader import LoadedModel
from swaa_runtime.model.shards import check_shardable, shard_model
from swaa_runtime.tensor_parallel.orders import Order
from swaa_runtime.tensor_parallel.worker import LOADED, Load, WorkerTask, run_worker

LOAD_S = 900.0
"""Loading a large model takes minutes."""

STOP_S = 10.0

NOTICE_S = 5.0
"""What waits for a rank that is gone may fail before the system tells of its end."""


class Ranks:
    """Ranks 0..n-1 of one model. Owned by one thread, the engine's, but for `close`."""

    def __init__(self, load: Load, devices: Sequence[torch.device], num_pieces: int = 2) -> None:
        """Start the other ranks and load the model; returns when all have their part of it. `close` ends them.

        Args:
            load: of the whole model, in each process.
            devices: of each rank, this process's first.
            num_pieces: see Group.

        Raises:
            ModelNotSupported: if the model cannot be shared out among so many, or there are not so many devices.
            EngineFailed: if a rank does not come up.
        """
        check_devices(devices)
        self._folder = Path(tempfile.mkdtemp(prefix="swaa-ranks-"))  # which no other user may enter
        self._failure: EngineFailed | None = None
        self._closing = threading.Event()
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        self._watch = threading.Thread(target=self._watch_workers, name="swaa-ranks", daemon=True)
        try:
            self._start(load, devices, num_pieces)
            whole = load(devices[0])
            check_shardable(whole.model.config, len(devices))
            self._wait_loaded()
            self.group = Group(0, len(devices), self._folder, devices[0], num_pieces)
            self.loaded: LoadedModel = shard_model(whole, self.group)
        except BaseException:
            self._end_processes()
            raise
        self._watch.start()

    def _start(self, load: Load, devices: Sequence[torch.device], num_pieces: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would have the parent's threads' locks
        for rank, device in enumerate(devices[1:], start=1):
            ours, theirs = context.Pipe()
            threads = max(1, torch.get_num_threads() // len(devices))
            task = WorkerTask(rank, len(devices), device, self._folder, load, num_pieces, threads)
            process = context.Process(target=run_worker, args=(task, theirs), name=f"swaa-rank-{rank}", daemon=True)
            process.start()
            theirs.close()  # so that its end is seen
            self._processes.append(process)
            self._pipes.append(ours)

    def _wait_loaded(self) -> None:
        deadline = time.monotonic() + LOAD_S
        for rank, pipe in enumerate(self._pipes, start=1):
            if not pipe.poll(max(0.0, deadline - time.monotonic())):
                raise EngineFailed(f"rank {rank} has not loaded its model within {LOAD_S:.0f} s")
            if (reason := _last_words(pipe)) != LOADED:
                raise EngineFailed(f"rank {rank} of {self._size} did not start: {reason}")

    @property
    def _size(self) -> int:
        return 1 + len(self._processes)

    def order(self, order: Order) -> None:
        """Have all other ranks do something. Whoever asks does its own part of it at once."""
        self.check()
        with self.together():
            for pipe in self._pipes:
                pipe.send(order)

    def check(self) -> None:
        """Raise EngineFailed if a rank is gone."""
        if self._failure is not None:
            raise self._failure

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Errors of what needs the other ranks are EngineFailed if one of those is gone."""
        try:
            yield
        except (RuntimeError, OSError) as exc:
            self._watch.join(NOTICE_S)  # it ends with the first of them
            if self._failure is not None:
                raise self._failure from exc
            raise

    def _watch_workers(self) -> None:
        sentinels = {process.sentinel: rank for rank, process in enumerate(self._processes, start=1)}
        gone = wait(list(sentinels))
        if self._closing.is_set():
            return
        rank = next(sentinels[sentinel] for sentinel in sentinels if sentinel in gone)
        process = self._processes[rank - 1]
        process.join()
        said = _last_words(self._pipes[rank - 1])
        self._failure = EngineFailed(f"rank {rank} of {self._size} ended (exit code {process.exitcode}): {said}")
        self.group.abort()

    def close(self) -> None:
        """End the other ranks. Returns when they are gone."""
        self._closing.set()
        self._end_processes()
        self._watch.join()
        self.group.abort()

    def _end_processes(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        deadline = time.monotonic() + STOP_S
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        shutil.rmtree(self._folder, ignore_errors=True)


def check_devices(devices: Sequence[torch.device]) -> None:
    """Raise ModelNotSupported if these are devices that this machine has not."""
    needed = sum(device.type == "cuda" for device in devices)
    if needed > (found := torch.cuda.device_count()):
        raise ModelNotSupported(f"{needed} GPUs are asked for, of which this process sees {found}")


def rank_devices(kind: str, size: int) -> tuple[torch.device, ...]:
    """Of a replica's ranks: one GPU each, or all of them the CPU."""
    return tuple(torch.device(kind, rank) if kind == "cuda" else torch.device(kind) for rank in range(size))


def _last_words(pipe: Connection) -> str:
    try:
        return str(pipe.recv()) if pipe.poll() else "it said nothing"
    except (EOFError, OSError):
        return "it said nothing"
