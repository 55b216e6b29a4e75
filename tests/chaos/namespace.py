"""A network namespace with two links to ours: clients come by one, the other can be cut. Needs root and iproute2."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

NETWORK = "10.213.{}.{}"
OUTSIDE, INSIDE = 1, 2
"""Of the third number of addresses: the clients' link, and the one to replicas and Redis. Ours is .1, the other .2."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace that is there."""

    name: str

    @property
    def clients_reach(self) -> str:
        """Its address for clients."""
        return NETWORK.format(OUTSIDE, 2)

    @property
    def reaches(self) -> str:
        """Our address for what runs in it."""
        return NETWORK.format(INSIDE, 1)

    def command(self, *words: str) -> tuple[str, ...]:
        """The command, to be run in it."""
        return ("ip", "netns", "exec", self.name, *words)

    def cut(self) -> None:
        """Packets to and from our side are lost, without a word."""
        _ip("netns", "exec", self.name, "ip", "link", "set", _end(self.name, INSIDE, 2), "down")

    def mend(self) -> None:
        """They pass again."""
        _ip("netns", "exec", self.name, "ip", "link", "set", _end(self.name, INSIDE, 2), "up")


def available() -> bool:
    """Whether namespaces can be made here."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    with contextlib.suppress(subprocess.CalledProcessError), namespace("swaa-try"):
        return True
    return False


@contextlib.contextmanager
def namespace(name: str) -> Iterator[Namespace]:
    """One with both links up; gone on leaving. Raises CalledProcessError."""
    _ip("netns", "add", name)
    try:
        _ip("-n", name, "link", "set", "lo", "up")
        for link in (OUTSIDE, INSIDE):
            here, there = _end(name, link, 1), _end(name, link, 2)
            _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
            _ip("addr", "add", f"{NETWORK.format(link, 1)}/24", "dev", here)
            _ip("link", "set", here, "up")
            _ip("-n", name, "addr", "add", f"{NETWORK.format(link, 2)}/24", "dev", there)
            _ip("-n", name, "link", "set", there, "up")
        yield Namespace(name)
    finally:
        for link in (OUTSIDE, INSIDE):
            _ip("link", "del", _end(name, link, 1), check=False)
        _ip("netns", "del", name)


def _end(name: str, link: int, side: int) -> str:
    return f"{name.replace('-', '')[-11:]}-{link}{side}"  # 15 characters at most


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(("ip", *words), check=check, capture_output=True)  # noqa: S607 - wherever it is
