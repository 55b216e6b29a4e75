"""From a URL to a Redis client: one server, the primary that sentinels name, or a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisClusterException, RedisError

from services.errors import StoreUnavailable
from services.sessions.redis_connection import Client

FORMS = (
    "redis://[user:pass@]host[:port][/db]",
    "unix://[user:pass@]/path",
    "redis+sentinel://[user:pass@]host[:port],.../service[/db]",
    "redis+cluster://[user:pass@]host[:port],...",
)
"""Forms of a URL; `rediss` for `redis` means TLS. Parameters after `?` are redis-py's, such as `ssl_ca_certs`.

User and password are the data servers'; sentinels have theirs in `sentinel_username` and `sentinel_password`.
"""

REDIS_PORT, SENTINEL_PORT = 6379, 26379


def connect(url: str, timeout_s: float) -> Client:
    """A client that connects at its first call, gives up a silent socket after `timeout_s`, and retries twice.

    Args:
        url: one of `FORMS`.
    Raises:
        StoreUnavailable: if the URL cannot be understood; it is not repeated, as it may hold a password.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(ExponentialBackoff(cap=0.5, base=0.05), retries=2),
    }
    try:
        scheme, plus, kind = url.partition("://")[0].partition("+")
        if not plus:
            return _checked(Redis.from_url(url, **options))
        if scheme in ("redis", "rediss") and kind == "sentinel":
            return _sentinel(urlsplit(url), scheme == "rediss", options)
        if scheme in ("redis", "rediss") and kind == "cluster":
            return _cluster(urlsplit(url), scheme == "rediss", options)
    except (ValueError, TypeError, RedisError, RedisClusterException):  # their texts may have the password as well
        pass
    raise StoreUnavailable(f"session store: its URL is not valid; it is one of {', '.join(FORMS)}") from None


def _sentinel(url: SplitResult, tls: bool, options: Mapping[str, Any]) -> Redis:
    service, _, db = url.path.removeprefix("/").partition("/")
    if not service:
        raise ValueError("no service")
    hosts, given = _hosts(url, SENTINEL_PORT), _given(url, tls)
    if db:
        given["db"] = int(db)
    login = {name: given.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in given}
    data = {**options, **given}
    ask = {name: value for name, value in data.items() if name.startswith(("socket_", "ssl", "retry"))} | login
    sentinel = Sentinel(hosts, sentinel_kwargs=ask, **data)  # type: ignore[no-untyped-call]
    return _checked(sentinel.master_for(service))


def _checked(client: Redis) -> Redis:
    """The client, if it knows all its parameters: it would look at them when it first connects. Raises TypeError."""
    client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    return client


def _cluster(url: SplitResult, tls: bool, options: Mapping[str, Any]) -> RedisCluster:
    if url.path not in ("", "/", "/0"):
        raise ValueError("a cluster has one database")
    nodes = [ClusterNode(host, port) for host, port in _hosts(url, REDIS_PORT)]
    return RedisCluster(startup_nodes=nodes, **{**options, **_given(url, tls)})


def _hosts(url: SplitResult, default_port: int) -> list[tuple[str, int]]:
    found = []
    for text in url.netloc.rpartition("@")[2].split(","):
        address = urlsplit("//" + text)
        if not address.hostname:
            raise ValueError("no host")
        found.append((address.hostname, address.port or default_port))
    return found


def _given(url: SplitResult, tls: bool) -> dict[str, Any]:
    """What the URL says besides hosts and path, as redis-py reads it."""
    login = "".join(url.netloc.rpartition("@")[:2])
    given: dict[str, Any] = {**parse_url(f"redis://{login}host?{url.query}")}
    del given["host"]
    return given | ({"ssl": True} if tls else {})
