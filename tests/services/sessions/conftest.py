"""A real Redis server for the tests of this folder, and stores on it."""

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
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """One server for all tests that leave it running."""
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(shared_server: EmbeddedRedis) -> EmbeddedRedis:
    """The shared server, empty."""
    with redis.Redis.from_url(shared_server.url) as client:
        client.flushall()
    return shared_server


@pytest.fixture
def raw(server: EmbeddedRedis) -> Iterator[redis.Redis]:
    """A plain client, to look behind the store's back and to do damage."""
    with redis.Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
def open_store(server: EmbeddedRedis) -> OpenStore:
    """Opens stores on the shared server; use with `async with`."""
    return store_opener(server)


@pytest.fixture
def private_server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A running server of the test's own, to stop and to kill."""
    server = EmbeddedRedis(tmp_path / "redis", stop_timeout_s=10.0)
    with server:
        yield server


def store_opener(server: EmbeddedRedis) -> OpenStore:
    """A function that opens a store on `server`, with a lifetime of an hour unless told otherwise."""

    @asynccontextmanager
    async def open_store(ttl_s: float = 3600.0, **kwargs: Any) -> AsyncIterator[RedisSessionStore]:
        store = RedisSessionStore(Redis.from_url(server.url), ttl_s, **kwargs)
        try:
            yield store
        finally:
            await store.close()

    return open_store
