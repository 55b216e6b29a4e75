"""Counters of what tenants use, in Redis: the same for all gateways of a deployment.

    swaa:{tenant}:buckets     hash: requests, tokens: what is left of a minute's worth at `at_ms`
    swaa:{tenant}:leases      sorted set of requests that run, by the time at which their leases end
    swaa:{tenant}:prefills    of these, those without a token yet

Both are gone by themselves when nobody asks: full buckets are not kept, and leases end when nobody renews them.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.errors import RateExceeded
from services.quota import Quota
from services.sessions import redis_quota_scripts
from services.sessions.redis_connection import RedisConnection, Script
from services.sessions.redis_keys import TenantKeys


@dataclass(frozen=True, slots=True)
class RedisQuotas:
    """Counts requests, prompt tokens and running requests of tenants. All raise StoreUnavailable.

    Attributes:
        connection: shared with the store of sessions, but for its patience: every request waits for this one.
        prefix: what all keys begin with.
        lease_ttl_ms: how long a lease lives after it was taken or renewed, in milliseconds.
    """

    connection: RedisConnection
    prefix: str
    lease_ttl_ms: int = 30_000

    async def take(self, tenant: str, quota: Quota, lease_id: str) -> None:
        """Take one request, and hold a lease if `lease_id` is not empty; all or nothing.

        Raises RateExceeded, which names the quota, what is used or left of it, and its bound.
        """
        await self._take(tenant, quota, 1, 0, lease_id)

    async def take_prompt(self, tenant: str, quota: Quota, num_tokens: int) -> None:
        """Take the tokens of a prompt. Raises RateExceeded as `take` does; then none are taken."""
        await self._take(tenant, quota, 0, num_tokens, "")

    async def _take(self, tenant: str, quota: Quota, requests: int, prompt_tokens: int, lease_id: str) -> None:
        keys = TenantKeys.of(self.prefix, tenant)
        bounds = (
            quota.requests_per_minute,
            quota.prompt_tokens_per_minute,
            quota.concurrent_requests,
            quota.concurrent_prefills,
        )
        answer: list[bytes | int] = await self.connection.run(
            Script(redis_quota_scripts.TAKE),
            [keys.buckets, keys.leases, keys.prefills],
            [
                *(-1 if bound is None else bound for bound in bounds),
                *(requests, prompt_tokens, lease_id, self.lease_ttl_ms),
            ],
        )
        if answer[0] != b"ok":
            name, figure, wait_ms = bytes(answer[0]).decode(), int(answer[1]), int(answer[2])
            told = _told(name, figure, quota, prompt_tokens)
            raise RateExceeded(told, name, None if wait_ms < 0 else float(wait_ms))

    async def renew(self, tenant: str, lease_id: str) -> None:
        """Prolong a lease."""
        keys = TenantKeys.of(self.prefix, tenant)
        places = [keys.leases, keys.prefills]
        await self.connection.run(Script(redis_quota_scripts.RENEW), places, [lease_id, self.lease_ttl_ms])

    async def prefilled(self, tenant: str, lease_id: str) -> None:
        """The request has its first token: it is no prefill any more."""
        keys = TenantKeys.of(self.prefix, tenant)
        await self.connection.run(Script(redis_quota_scripts.RELEASE), [keys.prefills], [lease_id])

    async def release(self, tenant: str, lease_id: str) -> None:
        """Give a lease back. One that has ended is no error."""
        keys = TenantKeys.of(self.prefix, tenant)
        await self.connection.run(Script(redis_quota_scripts.RELEASE), [keys.leases, keys.prefills], [lease_id])


def _told(name: str, figure: int, quota: Quota, prompt_tokens: int) -> str:
    bound = getattr(quota, name)
    if name in ("concurrent_requests", "concurrent_prefills"):
        return f"{name} is {figure}: this tenant's quota is {bound}"
    if name == "requests_per_minute":
        return f"{name}: this tenant's quota of {bound} is used up"
    return f"{name}: the prompt has {prompt_tokens} new tokens, and of this tenant's quota of {bound} {figure} are left"
