"""Holds tenants to their quotas: before anything is done for a request, and for as long as it runs.

    request, turn    one request more, and a place     before its session is read, before its prompt is tokenized
    prompt           its prompt's tokens               when they are known, before anything is planned

A store that does not answer stops no requests: they are taken unchecked, and counted as such. Quotas share a service
fairly; what protects its memory and its queue does not need Redis, and what reads sessions fails by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Protocol

from services.errors import RateExceeded, StoreUnavailable
from services.gateway.catalog import Catalog
from services.quota import Quota
from services.telemetry.metrics import QuotaMetrics

logger = logging.getLogger(__name__)

RENEW_INTERVAL_S = 10.0
"""A third of what a lease lives: one lost renewal ends none."""

OTHER = "other"
"""Stands in metrics for tenants that the catalogue does not name."""


class QuotaCounter(Protocol):
    """What tenants use, counted for all gateways. All raise StoreUnavailable."""

    async def take(self, tenant: str, quota: Quota, lease_id: str) -> None:
        """Take a request and, by this id, a lease; all or nothing. Raises RateExceeded."""
        ...

    async def take_prompt(self, tenant: str, quota: Quota, num_tokens: int) -> None:
        """Take the tokens of a prompt. Raises RateExceeded; then none are taken."""
        ...

    async def renew(self, tenant: str, lease_id: str) -> None:
        """Prolong a lease."""
        ...

    async def prefilled(self, tenant: str, lease_id: str) -> None:
        """The lease's request has its first token."""
        ...

    async def release(self, tenant: str, lease_id: str) -> None:
        """Give a lease back."""
        ...


class Unlimited:
    """A `QuotaCounter` that counts nothing: for tests."""

    async def take(self, tenant: str, quota: Quota, lease_id: str) -> None:
        """See `QuotaCounter`."""

    async def take_prompt(self, tenant: str, quota: Quota, num_tokens: int) -> None:
        """See `QuotaCounter`."""

    async def renew(self, tenant: str, lease_id: str) -> None:
        """See `QuotaCounter`."""

    async def prefilled(self, tenant: str, lease_id: str) -> None:
        """See `QuotaCounter`."""

    async def release(self, tenant: str, lease_id: str) -> None:
        """See `QuotaCounter`."""


class Quotas:
    """Of one gateway. Tenants without a quota cost nothing here."""

    def __init__(self, counter: QuotaCounter, metrics: QuotaMetrics) -> None:
        self._counter = counter
        self._metrics = metrics

    @contextlib.asynccontextmanager
    async def turn(self, catalog: Catalog, tenant: str) -> AsyncIterator[Callable[[], None]]:
        """The body is a turn that counts: its request is spent, its place is given back however it ends.

        Gives what to call when the turn has its first token: then its place among prefills is free.
        Raises RateExceeded; then nothing was taken.
        """
        quota, first_token = catalog.tenant(tenant).quota, asyncio.Event()
        if not quota.bounds_requests:
            yield first_token.set
            return
        lease_id = uuid.uuid4().hex if quota.bounds_places else ""
        holding: list[asyncio.Task[None]] = []
        try:
            # In the try: a call that is cancelled here may have taken its lease.
            await self._take(catalog, tenant, lease_id)
            if lease_id:
                holding.append(asyncio.create_task(self._renew(tenant, lease_id)))
            if quota.concurrent_prefills is not None:
                # In the background: no token waits for it.
                holding.append(asyncio.create_task(self._prefilled(tenant, lease_id, first_token)))
            yield first_token.set
        finally:
            for task in holding:
                task.cancel()
            if lease_id:
                with contextlib.suppress(StoreUnavailable):  # it ends by itself
                    await self._counter.release(tenant, lease_id)

    async def request(self, catalog: Catalog, tenant: str) -> None:
        """A request that runs nothing counts. Raises RateExceeded."""
        if catalog.tenant(tenant).quota.bounds_requests:
            await self._take(catalog, tenant, "")

    async def prompt(self, catalog: Catalog, tenant: str, num_tokens: int) -> None:
        """The new tokens of a turn's prompt count. Raises RateExceeded; then none were taken."""
        quota = catalog.tenant(tenant).quota
        if quota.prompt_tokens_per_minute is not None:
            with self._counting(catalog, tenant):
                await self._counter.take_prompt(tenant, quota, num_tokens)

    async def _take(self, catalog: Catalog, tenant: str, lease_id: str) -> None:
        with self._counting(catalog, tenant):
            await self._counter.take(tenant, catalog.tenant(tenant).quota, lease_id)

    @contextlib.contextmanager
    def _counting(self, catalog: Catalog, tenant: str) -> Iterator[None]:
        """Tells of refusals; a counter that is away refuses nothing."""
        named = tenant if tenant in catalog.tenants else OTHER
        try:
            yield
        except RateExceeded as exc:
            self._metrics.refused.labels(named, exc.quota).inc()
            raise
        except StoreUnavailable as exc:
            self._metrics.unchecked.labels(named).inc()
            logger.warning("a request of tenant %s is taken without a look at its quota: %s", tenant, exc)

    async def _prefilled(self, tenant: str, lease_id: str, first_token: asyncio.Event) -> None:
        await first_token.wait()
        with contextlib.suppress(StoreUnavailable):  # it ends with the turn
            await self._counter.prefilled(tenant, lease_id)

    async def _renew(self, tenant: str, lease_id: str) -> None:
        while True:
            await asyncio.sleep(RENEW_INTERVAL_S)
            with contextlib.suppress(StoreUnavailable):  # the next one takes it again, if it has ended
                await self._counter.renew(tenant, lease_id)
