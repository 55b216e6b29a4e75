"""What a service holds when nobody asks it anything: by its own metrics, by the kernel, by Redis."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import redis

from tests.services.telemetry.scrape import Samples
from tests.soak.audit import leases

BUSY_BLOCKS = ("full", "lookback", "window", "saving")
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Reading:
    """Of one moment. Blocks of KV memory: `total` are the pool; those that are not free are of parked states."""

    rss_mib: float
    redis_rss_mib: float
    redis_used_mib: float
    num_files: int
    num_threads: int
    parked_blocks: int
    free_blocks: int
    preemptions: int


def scrape(http_address: str) -> Samples:
    """The service's metrics now."""
    return Samples(httpx.get(f"http://{http_address}/metrics", timeout=120).raise_for_status().text)


def busy(samples: Samples) -> list[str]:
    """What is not idle, a line each."""
    held = {
        **{f"{use} blocks": samples.value("swaa_kv_blocks", use=use) for use in BUSY_BLOCKS},
        **{f"{state} requests": samples.value("swaa_engine_requests", state=state) for state in ("running", "waiting")},
        "answers running": samples.value("swaa_answers_running"),
        "swapped bytes": samples.value("swaa_swapped_bytes"),
        "ms of backlog": samples.value("swaa_prefill_backlog_seconds") * 1e3,
    }
    return [f"{count:g} {what}" for what, count in held.items() if count]


def wait_until_idle(http_address: str, client: redis.Redis, timeout_s: float) -> tuple[Samples, list[str]]:
    """The metrics of the first idle moment; what is held still, if there is none in time."""
    until_s = time.monotonic() + timeout_s
    while True:
        samples = scrape(http_address)
        held = busy(samples)
        if held_leases := leases(client):
            held.append(f"{held_leases} leases")
        if not held or time.monotonic() > until_s:
            return samples, held
        time.sleep(POLL_S)


def read(samples: Samples, pid: int, client: redis.Redis) -> Reading:
    """Everything that is to stay flat."""
    info = client.info()
    return Reading(
        rss_mib=rss_mib(pid),
        redis_rss_mib=rss_mib(int(info["process_id"])),
        redis_used_mib=info["used_memory"] / 2**20,
        num_files=len(os.listdir(f"/proc/{pid}/fd")),
        num_threads=len(os.listdir(f"/proc/{pid}/task")),
        parked_blocks=int(samples.value("swaa_kv_blocks", use="parked")),
        free_blocks=int(samples.value("swaa_kv_blocks", use="free")),
        preemptions=int(samples.value("swaa_preemptions_total")),
    )


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(f"process {pid} has no memory any more")
