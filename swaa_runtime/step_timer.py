"""How long a step takes, on a device that works while the host goes on."""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch


class StepTimer(Protocol):
    """Measures from its making to `stop`, on the device's clock."""

    def stop(self) -> None:
        """All of the step has been asked for."""
        ...

    def is_done(self) -> bool:
        """Whether the device has done it."""
        ...

    def elapsed_ms(self) -> float:
        """What it took. Waits until the device has done it."""
        ...


class HostTimer:
    """Of a device that is the host: what was asked for is done."""

    def __init__(self) -> None:
        self._start_s = self._stop_s = time.monotonic()

    def stop(self) -> None:
        """See StepTimer."""
        self._stop_s = time.monotonic()

    def is_done(self) -> bool:
        """See StepTimer."""
        return True

    def elapsed_ms(self) -> float:
        """See StepTimer."""
        return (self._stop_s - self._start_s) * 1e3


class CudaTimer:
    """By events in the stream."""

    def __init__(self) -> None:
        make: Any = torch.cuda.Event  # has no types
        self._start, self._stop = (make(enable_timing=True) for _ in range(2))
        self._start.record()

    def stop(self) -> None:
        """See StepTimer."""
        self._stop.record()

    def is_done(self) -> bool:
        """See StepTimer."""
        done: bool = self._stop.query()
        return done

    def elapsed_ms(self) -> float:
        """See StepTimer."""
        self._stop.synchronize()
        elapsed_ms: float = self._start.elapsed_time(self._stop)
        return elapsed_ms
