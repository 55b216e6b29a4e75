"""On uvloop, which Ray Serve runs replicas on, a connection that was reset is told by another error than on asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from services.errors import StoreUnavailable
from services.sessions.embedded_redis import EmbeddedRedis
from services.sessions.redis_connection import RedisConnection
from services.sessions.redis_store import RedisSessionStore
from tests.chaos.link import Link

uvloop = pytest.importorskip("uvloop")
pytestmark = pytest.mark.redis

NUM_CONNECTIONS = 4
SETTLE_S = 0.3
"""Until the loop has heard of the resets: only then it refuses to write."""


@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def test_connections_that_were_reset_are_a_store_that_is_away(
    server: EmbeddedRedis, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def check(link: Link) -> None:
        store = RedisSessionStore.from_url(f"redis://127.0.0.1:{link.port}/0", 60)
        names = [f"reset-{number}" for number in range(NUM_CONNECTIONS)]
        await asyncio.gather(*(store.acquire("tests", name, "owner") for name in names))
        link.set("cut")
        await asyncio.sleep(SETTLE_S)
        for name in names:
            with pytest.raises(StoreUnavailable, match="cannot be reached"):
                await store.acquire("tests", name, "owner")
        link.set("pass")
        await store.acquire("tests", names[0], "owner")
        await store.close()

    with Link(server.socket_path) as link, asyncio.Runner(loop_factory=loop) as runner:
        runner.run(check(link))


def test_other_errors_of_that_class_are_bugs_still(server: EmbeddedRedis) -> None:
    async def check() -> None:
        store = RedisSessionStore.from_url(server.url, 60)
        connection: RedisConnection = store._connection
        with pytest.raises(RuntimeError, match="ours"):
            async with connection.round_trip():
                raise RuntimeError("ours")
        await store.close()

    asyncio.run(check())
