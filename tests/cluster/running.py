"""A cluster as `swaa serve --ray` starts it, in a process of its own: replicas, gateways, a Redis of ours."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.sessions.embedded_redis import EmbeddedRedis

from .harness import processes_with, until

START_TIMEOUT_S = 600
"""A busy machine takes minutes to start Ray; the first start measures it as well."""

STOP_TIMEOUT_S = 120
REPLACED_TIMEOUT_S = 240


@dataclass(frozen=True)
class Running:
    """A cluster of its own process. `replicas_at`: host:port of Serve's gRPC proxy."""

    gateways: tuple[str, ...]
    replicas_at: str
    folder: Path
    process: subprocess.Popen[bytes]
    redis: EmbeddedRedis
    environment: Mapping[str, str]

    def replicas(self) -> list[int]:
        """Processes of replicas that are up."""
        return self.named("ray::ServeReplica:")

    def named(self, part: str) -> list[int]:
        """Processes of the cluster that have this in their command line."""
        pids = []
        for pid in processes_with(str(self.folder)):
            with contextlib.suppress(OSError):
                if os.fsencode(part) in Path(f"/proc/{pid}/cmdline").read_bytes():
                    pids.append(pid)
        return pids


@contextlib.contextmanager
def running_process(
    folder: Path, model: Path, redis: EmbeddedRedis, num_replicas: int, num_gateways: int, settings: Mapping[str, str]
) -> Iterator[Running]:
    """Running; when it has stopped, nothing of it runs any more. `settings` by the names of `ServeConfig`.

    `redis` is running, in `folder`, and is stopped as well.
    """
    ready, log_path = folder / "ready", folder / "log"
    defaults = {
        "model": str(model),
        "dtype": "float32",
        "kv_memory_mib": "64",
        "checkpoint_tokens": "128",
        "redis_url": redis.url,
        "redis_timeout_s": "60",  # a busy machine is not what is tested
        "cache_dir": str(folder / "cache"),
        "state_dir": str(folder / "state"),
        "listen": "127.0.0.1:0",
        "http_listen": "",
    }
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SWAA_")},
        **{f"SWAA_{name.upper()}": value for name, value in {**defaults, **settings}.items()},
        "OMP_NUM_THREADS": "1",
    }
    options = ("--num-replicas", str(num_replicas), "--num-gateways", str(num_gateways), "--ready-file", str(ready))
    command = (sys.executable, "-m", "services.cli", "serve", "--ray", *options)
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not ready.exists():
            assert process.poll() is None, log_path.read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline_s, log_path.read_text(errors="replace")[-3000:]
            time.sleep(0.2)
        gateways = tuple(ready.read_text(encoding="utf-8").split())
        assert len(gateways) == num_gateways
        told = re.search(r"leased at (\S+)", log_path.read_text(encoding="utf-8"))
        assert told is not None
        yield Running(gateways, told[1], folder, process, redis, environment)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        finally:
            process.kill()  # takes all of it along, and is nothing to one that has ended
            process.wait()
        redis.stop()
    until("all processes of the cluster are gone", lambda: not processes_with(str(folder)), 120)
