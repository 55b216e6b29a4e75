"""The host stays one layer ahead of a device that is played by a list of what was asked of it."""

from __future__ import annotations

from dataclasses import dataclass

from swaa_runtime.layer_pacer import EventPacer, HostPacer


@dataclass(slots=True)
class FakeEvent:
    """An event that writes down what is done with it."""

    name: int
    log: list[str]

    def record(self) -> None:
        self.log.append(f"record {self.name}")

    def synchronize(self) -> None:
        self.log.append(f"wait {self.name}")


def test_before_a_layer_is_asked_for_the_one_before_the_last_is_done() -> None:
    log: list[str] = []
    names = iter(range(9))
    pacer = EventPacer(lambda: FakeEvent(next(names), log))
    for layer in range(4):
        pacer.pace()
        log.append(f"layer {layer}")
    assert log == [
        *("record 0", "layer 0"),
        *("record 1", "wait 0", "layer 1"),
        *("record 2", "wait 1", "layer 2"),
        *("record 3", "wait 2", "layer 3"),
    ]


def test_a_host_has_nobody_to_wait_for() -> None:
    HostPacer().pace()
