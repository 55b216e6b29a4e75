"""All ranks, as rank 0 has them: itself, and the others as child processes that it starts, orders, watches and ends.

When one of them ends, or does not do its part in time, the others are killed, what waits for them is aborted, and all
that is asked from then on raises EngineFailed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from swaa_runtime.errors import EngineFailed, ModelNotSupported
from swaa_runtime.group import Group
from swaa_runtime.model.loader import LoadedModel
from swaa_runtime.model.shards import check_shardable, shard_model
from swaa_runtime.tensor_parallel.orders import Order
from swaa_runtime.tensor_parallel.worker import LOADED, Load, WorkerTask, run_worker

LOAD_S = 900.0
"""Loading a large model takes minutes."""

HANG_S = 60.0
"""A step takes seconds. Ranks that take this long for one wait for one that does not answer, and always would."""

LOOKS = 20
"""How often, within `hang_s`, the watch looks whether they are done."""

STOP_S = 10.0

NOTICE_S = 5.0
"""What waits for a rank that is gone may fail before the system tells of its end."""


@dataclass(slots=True)
class _Work:
    """What all ranks are at: the host is done when it has `asked` for all of it, a GPU when it comes to `event`."""

    limit_s: float
    asked: bool = False
    event: Any = None  # torch's has no types

    def is_done(self) -> bool:
        return self.asked and (self.event is None or bool(self.event.query()))


class Ranks:
    """Ranks 0..n-1 of one model. Owned by one thread, the engine's, but for `close`."""

    def __init__(
        self, load: Load, devices: Sequence[torch.device], num_pieces: int = 2, hang_s: float = HANG_S
    ) -> None:
        """Start the other ranks and load the model; returns when all have their part of it. `close` ends them.

        Args:
            load: of the whole model, in each process.
            devices: of each rank, this process's first.
            num_pieces: see Group.
            hang_s: what the ranks do together takes less, unless one of them does not answer.

        Raises:
            ModelNotSupported: if the model cannot be shared out among so many, or there are not so many devices.
            EngineFailed: if a rank does not come up.
        """
        check_devices(devices)
        self._folder = Path(tempfile.mkdtemp(prefix="swaa-ranks-"))  # which no other user may enter
        self._hang_s = hang_s
        self._work = _Work(hang_s, asked=True)
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
        """Raise EngineFailed if a rank is gone or does not answer."""
        if self._failure is not None:
            raise self._failure

    @contextlib.contextmanager
    def together(self, limit_s: float | None = None) -> Iterator[None]:
        """Do what needs the other ranks. Its errors are EngineFailed if one of those is gone or does not answer.

        Args:
            limit_s: in which they and the device have to be done; None: `hang_s`.
        """
        work = self._work = _Work(limit_s or self._hang_s)
        try:
            yield
            if self.group.device.type == "cuda":
                work.event = torch.cuda.current_stream(self.group.device).record_event()
        except (RuntimeError, OSError) as exc:
            self._watch.join(NOTICE_S)  # it ends with the first of them
            if self._failure is not None:
                raise self._failure from exc
            raise
        finally:
            work.asked = True

    def _watch_workers(self) -> None:
        rank = self._wait_for_end()
        if self._closing.is_set():
            return
        self._failure = EngineFailed(self._what_ended(rank) if rank else self._what_hangs())
        for process in self._processes:
            process.kill()  # which ends one that is stopped, too
            process.join(STOP_S)
        self.group.abort()

    def _wait_for_end(self) -> int | None:
        """The rank whose process has ended; None if all together have been at the same work for too long.

        Which is counted in looks. By the clock, a machine that was paused for a while would have hanging ranks.
        """
        sentinels = {process.sentinel: rank for rank, process in enumerate(self._processes, start=1)}
        look_s, looks, seen = self._hang_s / LOOKS, 0, self._work
        while not (gone := wait(list(sentinels), look_s)):
            looks = looks + 1 if self._work is seen and not seen.is_done() else 0
            seen = self._work
            if looks * look_s >= seen.limit_s:
                return None
        return min(rank for sentinel, rank in sentinels.items() if sentinel in gone)

    def _what_ended(self, rank: int) -> str:
        process = self._processes[rank - 1]
        process.join()
        said = _last_words(self._pipes[rank - 1])
        return f"rank {rank} of {self._size} ended (exit code {process.exitcode}): {said}"

    def _what_hangs(self) -> str:
        return f"a rank of {self._size} does not answer: they were not done within {self._work.limit_s:g} s"

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
