"""URLs of all kinds, what is wrong with others, and that no error repeats a password."""

from __future__ import annotations

import pytest
import redis
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import SSLConnection
from redis.asyncio.sentinel import SentinelConnectionPool, SentinelManagedSSLConnection

from services.errors import StoreUnavailable
from services.sessions.redis_connection import RedisConnection
from services.sessions.redis_store import RedisSessionStore
from services.sessions.redis_url import connect

from .builders import asynchronous


def test_one_server() -> None:
    client = connect("rediss://user:s%2Fecret@host:7000/3?ssl_ca_certs=/ca.pem&ssl_check_hostname=no", 2.5)
    assert isinstance(client, Redis)
    options = client.connection_pool.connection_kwargs
    assert client.connection_pool.connection_class is SSLConnection
    assert {name: options[name] for name in ("host", "port", "db", "username", "password", "ssl_ca_certs")} == {
        "host": "host",
        "port": 7000,
        "db": 3,
        "username": "user",
        "password": "s/ecret",
        "ssl_ca_certs": "/ca.pem",
    }
    assert options["ssl_check_hostname"] is False
    assert options["socket_timeout"] == options["socket_connect_timeout"] == 2.5


def test_sentinels() -> None:
    url = "rediss+sentinel://user:secret@one:1,[::1],three:3/swaa/2?ssl_ca_certs=/ca.pem&sentinel_password=other"
    client = connect(url, 2.5)
    assert isinstance(client, Redis)
    pool = client.connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    assert pool.service_name == "swaa"
    assert pool.connection_class is SentinelManagedSSLConnection
    assert (pool.connection_kwargs["username"], pool.connection_kwargs["password"]) == ("user", "secret")
    assert pool.connection_kwargs["db"] == 2
    sentinels = [sentinel.connection_pool for sentinel in pool.sentinel_manager.sentinels]
    addresses = [(pool.connection_kwargs["host"], pool.connection_kwargs["port"]) for pool in sentinels]
    assert addresses == [("one", 1), ("::1", 26379), ("three", 3)]
    for sentinel in sentinels:
        assert sentinel.connection_class is SSLConnection
        assert sentinel.connection_kwargs["password"] == "other"  # noqa: S105 - and not the servers'
        assert sentinel.connection_kwargs["username"] is None
        assert sentinel.connection_kwargs["socket_timeout"] == 2.5


def test_a_cluster() -> None:
    client = connect("rediss+cluster://user:secret@one:1,two?ssl_ca_certs=/ca.pem", 2.5)
    assert isinstance(client, RedisCluster)
    assert [(node.host, node.port) for node in client.startup_nodes] == [("one", 1), ("two", 6379)]
    options = client.connection_kwargs
    assert options["connection_class"] is SSLConnection
    assert (options["username"], options["password"], options["ssl_ca_certs"]) == ("user", "secret", "/ca.pem")
    assert options["socket_timeout"] == 2.5


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://:correct-horse@host",
        "redis://host:port",
        "redis://:correct-horse@host?no_such_parameter=1",
        "redis://:correct-horse@host?ssl_ca_certs=/ca.pem",
        "redis://:correct-horse@host?socket_timeout=soon",
        "redis+sentinel://:correct-horse@host:1",
        "redis+sentinel://:correct-horse@/swaa",
        "redis+sentinel://:correct-horse@host:port/swaa",
        "redis+sentinel://:correct-horse@host/swaa/first",
        "redis+sentinel://:correct-horse@host/swaa?no_such_parameter=1",
        "redis+cluster://:correct-horse@",
        "redis+cluster://:correct-horse@one,,two",
        "redis+cluster://:correct-horse@one/1",
        "redis+cluster://:correct-horse@one?no_such_parameter=1",
        "redis+other://:correct-horse@host",
        "unix+cluster:///path",
    ],
)
def test_a_url_that_makes_no_sense(url: str) -> None:
    with pytest.raises(StoreUnavailable, match="URL is not valid") as caught:
        RedisSessionStore.from_url(url, 60)
    assert "correct-horse" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "url",
    [
        "redis://:correct-horse@127.0.0.1:1",
        "redis+sentinel://:correct-horse@127.0.0.1:1/swaa?sentinel_password=correct-horse",
        "redis+cluster://:correct-horse@127.0.0.1:1",
    ],
)
@asynchronous
async def test_no_error_repeats_a_password(url: str) -> None:
    store = RedisSessionStore.from_url(url, 60, timeout_s=0.5)
    with pytest.raises(StoreUnavailable, match="session store: ") as caught:
        await store.ping()
    await store.close()
    assert "correct-horse" not in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize(
    "url",
    [
        "redis://:correct-horse@127.0.0.1:1",
        "redis+sentinel://127.0.0.1:1/swaa?sentinel_password=correct-horse",
        "redis+sentinel://:correct-horse@127.0.0.1:1/swaa",
        "redis+cluster://:correct-horse@127.0.0.1:1",
    ],
)
@asynchronous
async def test_a_password_that_redis_repeats_is_hidden(url: str) -> None:
    """A server too old for HELLO answers with the arguments that it did not understand, the password among them."""
    connection = RedisConnection(connect(url, 1.0), 1.0)
    with pytest.raises(StoreUnavailable, match=r"\*\*\*") as caught:
        async with connection.round_trip():
            raise redis.ResponseError("unknown command `HELLO`, with args beginning with: `AUTH`, `correct-horse`")
    assert "correct-horse" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert caught.value.__cause__ is None
