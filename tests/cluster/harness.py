"""A tiny model to serve, leases as a gateway takes them, and a look at which processes are there."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc

from services.cluster import APPLICATION
from services.pb.swaa.v1 import replica_pb2 as pb
from services.pb.swaa.v1 import replica_pb2_grpc as pb_grpc

T = TypeVar("T")
LEASE_TIMEOUT_S = 120.0
SETTLE_S = 0.05


class Lease:
    """An open `Lease` call."""

    def __init__(self, channel: grpc.Channel, session_id: str = "", timeout_s: float = LEASE_TIMEOUT_S) -> None:
        metadata = [("application", APPLICATION)]
        if session_id:
            metadata.append(("session_id", session_id))
        request = pb.LeaseRequest(tenant="tests", session_id=session_id)
        self.call: Any = pb_grpc.ReplicaDirectoryStub(channel).Lease(  # type: ignore[no-untyped-call]
            request, metadata=metadata, timeout=timeout_s
        )

    def grant(self) -> pb.LeaseGrant:
        """Wait for it. Raises grpc.RpcError if it is refused."""
        grant: pb.LeaseGrant = next(self.call)
        return grant

    def cancel(self) -> None:
        self.call.cancel()


@contextlib.contextmanager
def opened(
    channel: grpc.Channel, session_id: str = "", timeout_s: float = LEASE_TIMEOUT_S
) -> Iterator[tuple[Lease, pb.LeaseGrant]]:
    """A lease that was granted, and is given back on leaving."""
    lease = Lease(channel, session_id, timeout_s)
    try:
        yield lease, lease.grant()
        time.sleep(SETTLE_S)  # a turn takes a moment; without, Serve may lose the cancellation
    finally:
        lease.cancel()
        time.sleep(SETTLE_S)  # until the router has heard of it


@contextlib.contextmanager
def held(channel: grpc.Channel, session_id: str = "", timeout_s: float = LEASE_TIMEOUT_S) -> Iterator[pb.LeaseGrant]:
    """The same where only the grant is of interest."""
    with opened(channel, session_id, timeout_s) as (_, grant):
        yield grant


def is_ready(channel: grpc.Channel, timeout_s: float) -> bool:
    """Whether it gets a connection within so long; it is closed then."""
    with channel, contextlib.suppress(grpc.FutureTimeoutError):
        grpc.channel_ready_future(channel).result(timeout_s)
        return True
    return False


def pid_of(grant: pb.LeaseGrant) -> int:
    return int(grant.replica_id.rpartition("#")[2])


def is_running(pid: int) -> bool:
    """Whether there is such a process; a zombie is none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    return False


def processes_with(marker: str) -> list[int]:
    """Processes, but this one, whose environment or command line contains the marker."""
    needle, found = os.fsencode(marker), []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pid = int(folder.name)
            if needle in (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes() and pid != os.getpid():
                found.append(pid)
    return [pid for pid in found if is_running(pid)]


def until(what: str, ask: Callable[[], T], timeout_s: float) -> T:
    """Ask until the answer is true, which it must be within `timeout_s`; that answer."""
    deadline_s = time.monotonic() + timeout_s
    while not (answer := ask()):
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {what}"
        time.sleep(0.1)
    return answer
