"""Redis servers on TCP ports, alone, as a cluster or watched by a sentinel; none outlives the test process."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from services.guarded_process import GuardedProcess
from services.sessions.embedded_redis import find_redis_server

CLUSTER_BUS_OFFSET = 10_000
NUM_SLOTS = 16_384


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    port: int
    process: GuardedProcess

    @contextlib.contextmanager
    def client(self) -> Iterator[redis.Redis]:
        """A plain client."""
        with redis.Redis(port=self.port, decode_responses=True, protocol=2) as client:
            yield client

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()


def until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    """Wait for the condition. Raises TimeoutError."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError("it did not come to hold")
        time.sleep(0.02)


@contextlib.contextmanager
def redis_server(folder: Path, *arguments: str) -> Iterator[Server]:
    """A ready server in a folder of its own, with these arguments beside the usual."""
    port = free_port()
    folder.mkdir(exist_ok=True)
    usual = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    with (folder / "log").open("wb") as log:
        process = GuardedProcess([str(find_redis_server()), *arguments, *usual], log)
    server = Server(port, process)
    try:
        until(lambda: _answers(server))
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def redis_cluster(folder: Path, num_nodes: int = 3) -> Iterator[list[Server]]:
    """Primaries that share the slots evenly, and agree on it."""
    with contextlib.ExitStack() as stack:
        options = ("--save", "", "--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
        nodes = [stack.enter_context(redis_server(folder / f"node{at}", *options)) for at in range(num_nodes)]
        clients = [stack.enter_context(node.client()) for node in nodes]
        for at, client in enumerate(clients):
            command(client, "CLUSTER", "SET-CONFIG-EPOCH", at + 1)
            slots = range(NUM_SLOTS * at // num_nodes, NUM_SLOTS * (at + 1) // num_nodes)
            command(client, "CLUSTER", "ADDSLOTS", *slots)
            command(client, "CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
        until(lambda: all(cluster_state(node) == "ok" for node in nodes))
        yield nodes


@contextlib.contextmanager
def redis_sentinel(folder: Path, primary: Server, service: str) -> Iterator[Server]:
    """A sentinel that knows the primary's replica, and promotes it a second after the primary is gone."""
    folder.mkdir()
    config = folder / "sentinel.conf"
    config.write_text(
        f"sentinel monitor {service} 127.0.0.1 {primary.port} 1\n"
        f"sentinel down-after-milliseconds {service} 500\n"
        f"sentinel failover-timeout {service} 2000\n"
    )
    with redis_server(folder, str(config), "--sentinel") as sentinel:
        with sentinel.client() as client:
            until(lambda: command(client, "SENTINEL MASTER", service)["num-slaves"] == 1)
        yield sentinel


def command(client: redis.Redis, *words: str | int) -> Any:
    """The answer to a command that has no method."""
    return client.execute_command(*words)  # type: ignore[no-untyped-call]


def cluster_state(node: Server) -> str:
    """What the node thinks of its cluster: ok or fail."""
    with node.client() as client:
        state: str = command(client, "CLUSTER INFO")["cluster_state"]
        return state


def free_port() -> int:
    """A port that is free, and whose cluster bus's is."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                other.bind(("127.0.0.1", port + CLUSTER_BUS_OFFSET))
                return port


def _answers(server: Server) -> bool:
    if (code := server.process.exit_code()) is not None:
        raise RuntimeError(f"redis-server ended with code {code}")
    with server.client() as client, contextlib.suppress(redis.ConnectionError):
        return bool(client.ping())
    return False
