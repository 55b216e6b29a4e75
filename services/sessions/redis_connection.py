"""How this project talks to Redis: with bounded patience, and with errors of its own. Knows nothing of sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError

from services.errors import StoreUnavailable


def connect(url: str, timeout_s: float) -> Redis:
    """A client that connects at its first call, gives up a silent socket after `timeout_s`, and retries twice.

    Args:
        url: `redis://`, `rediss://` or `unix://`, see `redis.asyncio.from_url`.
    Raises:
        StoreUnavailable: if the URL cannot be understood; it is not repeated, as it may hold a password.
    """
    retry = Retry(ExponentialBackoff(cap=0.5, base=0.05), retries=2)
    try:
        return Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=retry)
    except ValueError:
        raise StoreUnavailable(
            "session store: its URL is not valid; it begins with redis://, rediss:// or unix://"
        ) from None


@asynccontextmanager
async def round_trip(client: Redis, timeout_s: float) -> AsyncIterator[None]:
    """The one place where Redis's errors become ours, and where waiting for it ends: after `timeout_s` seconds."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except (RedisError, OSError) as exc:  # OSError: TimeoutError too
        detail = str(exc) or f"no answer in {timeout_s} s"
        text = f"session store: {type(exc).__name__}: {detail}"
        secret = client.connection_pool.connection_kwargs.get("password")
        if secret and secret in text:  # Redis repeats the arguments of a command that it does not know
            raise StoreUnavailable(text.replace(secret, "***")) from None
        raise StoreUnavailable(text) from exc
