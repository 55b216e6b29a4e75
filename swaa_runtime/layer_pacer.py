"""Keeps the host near the device while a step may be interrupted: what is asked for already runs before newcomers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class LayerPacer(Protocol):
    """Of one step."""

    def pace(self) -> None:
        """Called once a layer, before the rest of it is asked for: waits until the host is not too far ahead."""
        ...


class HostPacer:
    """Of a device that is the host, which is never ahead of itself."""

    def pace(self) -> None:
        """See LayerPacer."""


class Event(Protocol):
    """A place in a device's stream of work, as torch.cuda.Event."""

    def record(self) -> None:
        """It is here: after all that has been asked for."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has come there. Other threads go on."""
        ...


class EventPacer:
    """Lets the host be one layer ahead: enough that the device does not run dry, as a long step's layer takes longer to
    compute than to ask for."""

    def __init__(self, make_event: Callable[[], Event]) -> None:
        self._make_event = make_event
        self._last: Event | None = None

    def pace(self) -> None:
        """See LayerPacer. Returns once the device has come to where the call before was made."""
        event = self._make_event()
        event.record()
        if self._last is not None:
            self._last.synchronize()
        self._last = event
