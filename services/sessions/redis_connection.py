"""How this project talks to Redis: with bounded patience, and with errors of its own. Knows nothing of sessions."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, OutOfMemoryError, ReadOnlyError, RedisClusterException, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from services.errors import StoreUnavailable

Client = Redis | RedisCluster
"""A server, the primary that sentinels name, or a cluster."""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script. Servers know it by its digest once they have run it; those that do not are sent its text.

    redis-py's own script objects load it on all primaries of a cluster first, and fail if any of them is away.
    """

    text: str

    @property
    def digest(self) -> str:
        """What Redis calls it."""
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class RedisConnection:
    """A client with the two things all callers share: how long they wait, and what errors they see.

    Attributes:
        timeout_s: bound of one round trip, in seconds.
    """

    client: Client
    timeout_s: float

    @asynccontextmanager
    async def round_trip(self) -> AsyncIterator[None]:
        """The one place where Redis's errors become StoreUnavailable, and where waiting for it ends."""
        try:
            async with asyncio.timeout(self.timeout_s):
                yield
        except (RedisError, RedisClusterException, OSError, RuntimeError) as exc:  # OSError: TimeoutError too
            if isinstance(exc, RuntimeError) and not _is_closed(exc):
                raise
            told = text = f"session store: {self._explain(exc)}"
            for secret in _secrets(self.client):
                told = told.replace(secret, "***")
            if _is_read_only(exc):
                await self._forget_server()
            # Redis repeats the arguments of a command that it does not know
            raise StoreUnavailable(told) from (exc if told == text else None)

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        """What the script answers. Raises StoreUnavailable."""
        async with self.round_trip():
            try:
                return await self.client.evalsha(script.digest, len(keys), *keys, *args)
            except NoScriptError:
                return await self.client.eval(script.text, len(keys), *keys, *args)

    async def ping(self) -> None:
        """Return if the server answers. Raises StoreUnavailable."""
        async with self.round_trip():
            await cast(Awaitable[Any], self.client.ping())

    async def close(self) -> None:
        """Close all connections."""
        await self.client.aclose()
        if isinstance(self.client, RedisCluster):
            for nodes in ("nodes_cache", "startup_nodes"):  # after a call that failed, it thinks that it has none
                await self.client.nodes_manager.aclose(nodes)
        elif isinstance(pool := self.client.connection_pool, SentinelConnectionPool):
            await pool.sentinel_manager.aclose()

    def _explain(self, exc: Exception) -> str:
        detail = str(exc)
        if isinstance(exc, OutOfMemoryError) or "OOM " in detail:  # before Redis 7, scripts tell only so
            return f"its memory is full: {detail}"
        if _is_read_only(exc):
            return f"it is read only: {detail}"
        if isinstance(exc, TimeoutError | RedisTimeoutError):
            return f"no answer in {self.timeout_s} s: {detail or type(exc).__name__}"
        if isinstance(exc, RedisConnectionError | OSError) or _is_closed(exc):
            return f"cannot be reached: {detail or type(exc).__name__}"
        return f"{type(exc).__name__}: {detail}"

    async def _forget_server(self) -> None:
        """Connect anew at the next call: the server was a primary, and its name may mean another one by now."""
        if isinstance(self.client, Redis):  # a cluster's servers send their clients on
            await self.client.connection_pool.disconnect(inuse_connections=False)


def _is_closed(exc: Exception) -> bool:
    """Whether uvloop (Ray Serve runs replicas on it) was to write to a connection that was reset: asyncio writes on."""
    return isinstance(exc, RuntimeError) and "the handler is closed" in str(exc)


def _is_read_only(exc: Exception) -> bool:
    return isinstance(exc, ReadOnlyError) or "READONLY" in str(exc)


def _secrets(client: Client) -> list[str]:
    if isinstance(client, RedisCluster):
        options = [client.connection_kwargs]
    else:
        pool = client.connection_pool
        options = [pool.connection_kwargs]
        if isinstance(pool, SentinelConnectionPool):
            options.append(pool.sentinel_manager.sentinel_kwargs)
    return [secret for option in options for name in ("password", "ssl_password") if (secret := option.get(name))]
