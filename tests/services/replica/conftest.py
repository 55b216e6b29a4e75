"""Stores on a real Redis server: one that is shared, and one to kill."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.asyncio import Redis

from services.sessions.embedded_redis import EmbeddedRedis
from services.sessions.redis_store import RedisSessionStore

OpenStore = Callable[..., AbstractAsyncContextManager[RedisSessionStore]]


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A server for all tests that leave it running."""
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def raw(shared_redis: EmbeddedRedis) -> Iterator[redis.Redis]:
    """A plain client of the shared server, which is empty at first: to look behind the store's back and do damage."""
    with redis.Redis.from_url(shared_redis.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def open_store(shared_redis: EmbeddedRedis, raw: redis.Redis) -> OpenStore:
    """Opens stores on the shared server; use with `async with`."""
    return store_opener(shared_redis)


@pytest.fixture
def private_redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A running server of the test's own."""
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    yield server
    server.kill()


def store_opener(server: EmbeddedRedis) -> OpenStore:
    @asynccontextmanager
    async def open_store(
        kind: type[RedisSessionStore] = RedisSessionStore, **options: Any
    ) -> AsyncIterator[RedisSessionStore]:
        store = kind(Redis.from_url(server.url), **{"ttl_s": 3600.0, **options})
        try:
            yield store
        finally:
            await store.close()

    return open_store
