"""What is done to whom. Each fault does its harm, holds it for a while, and undoes what can be undone."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import redis

from services.sessions.embedded_redis import EmbeddedRedis
from tests.chaos.link import Link, Mode
from tests.chaos.namespace import Namespace
from tests.cluster.harness import is_running
from tests.cluster.running import REPLACED_TIMEOUT_S

PAUSE_S = 15.0
"""Longer than it takes a gateway to give up a silent replica, and than a call of the store may take."""

SHORT_PAUSE_S = 4.0
SLICE_S = 0.2


@dataclass(frozen=True, slots=True)
class Victims:
    """What can be harmed. `namespace`: of the gateway that can be cut off; None where that cannot be had.

    `replicas`: asks for the processes of those that are up; `link`: what all go through to reach Redis.
    """

    redis: EmbeddedRedis
    link: Link
    replicas: Callable[[], list[int]]
    namespace: Namespace | None
    num_replicas: int
    rng: random.Random

    async def a_replica(self) -> int:
        """Some replica's process, once all are up."""
        async with asyncio.timeout(REPLACED_TIMEOUT_S):
            # The kernel tells nobody.
            while len(pids := await asyncio.to_thread(self.replicas)) < self.num_replicas:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        return self.rng.choice(pids)

    def redis_pid(self) -> int:
        """The process of Redis."""
        with redis.Redis.from_url(self.redis.url) as client:
            info: Any = client.info("server")
            return int(info["process_id"])


Fault = Callable[[Victims], Awaitable[None]]


async def replica_killed(victims: Victims) -> None:
    """SIGKILL; Serve starts another one."""
    os.kill(await victims.a_replica(), signal.SIGKILL)


async def replica_paused(victims: Victims) -> None:
    """It says nothing for so long that its turns go on elsewhere; then it goes on, too, with what it was at."""
    await _paused(await victims.a_replica(), PAUSE_S)


async def replica_slowed(victims: Victims) -> None:
    """It runs for half of the time."""
    pid = await victims.a_replica()
    for _ in range(int(PAUSE_S / SLICE_S / 2)):
        await _paused(pid, SLICE_S)
        await asyncio.sleep(SLICE_S)


async def redis_killed(victims: Victims) -> None:
    """SIGKILL, and a start from what is on the disk."""
    victims.redis.kill()
    await asyncio.sleep(1.0)
    await asyncio.to_thread(victims.redis.start)


async def redis_paused(victims: Victims) -> None:
    """It says nothing, and then answers all at once."""
    await _paused(victims.redis_pid(), PAUSE_S)


async def redis_slow(victims: Victims) -> None:
    """Every piece of bytes is late, both ways."""
    await _linked(victims, "slow", PAUSE_S)


async def redis_swallowed(victims: Victims) -> None:
    """Bytes to and from it vanish, and nobody is told: a partition."""
    await _linked(victims, "hole", PAUSE_S)


async def redis_cut(victims: Victims) -> None:
    """Connections are reset, and new ones are."""
    await _linked(victims, "cut", SHORT_PAUSE_S)


async def gateway_cut_off(victims: Victims) -> None:
    """A gateway reaches neither replicas nor Redis; its clients reach it."""
    assert victims.namespace is not None
    victims.namespace.cut()
    try:
        await asyncio.sleep(PAUSE_S)
    finally:
        victims.namespace.mend()


ANYWHERE: tuple[Fault, ...] = (
    replica_killed,
    redis_killed,
    redis_cut,
    replica_slowed,
    redis_slow,
    redis_paused,
    replica_paused,
    redis_swallowed,
)


async def _paused(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        if is_running(pid):  # Serve may have replaced it
            os.kill(pid, signal.SIGCONT)


async def _linked(victims: Victims, mode: Mode, seconds: float) -> None:
    victims.link.set(mode)
    try:
        await asyncio.sleep(seconds)
    finally:
        victims.link.set("pass")
