"""Holds tenants to their quotas: before a request is planned, and for as long as it runs.

A store that does not answer stops no requests: they are taken unchecked, and counted as such. Quotas share a service
fairly; what protects its memory and its queue does not need Redis, and what reads sessions fails by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator
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

    async def take(self, tenant: str, quota: Quota, prompt_tokens: int, lease_id: str) -> None:
        """Take a request, its prompt's tokens and, by this id, a lease; all or nothing. Raises RateExceeded."""
        ...

    async def renew(self, tenant: str, lease_id: str) -> None:
        """Prolong a lease."""
        ...

    async def release(self, tenant: str, lease_id: str) -> None:
        """Give a lease back."""
        ...


class Unlimited:
    """A `QuotaCounter` that counts nothing: for tests."""

    async def take(self, tenant: str, quota: Quota, prompt_tokens: int, lease_id: str) -> None:
        """See `QuotaCounter`."""

    async def renew(self, tenant: str, lease_id: str) -> None:
        """See `QuotaCounter`."""

    async def release(self, tenant: str, lease_id: str) -> None:
        """See `QuotaCounter`."""


class Quotas:
    """Of one gateway. Tenants without a quota cost nothing here."""

    def __init__(self, counter: QuotaCounter, metrics: QuotaMetrics) -> None:
        self._counter = counter
        self._metrics = metrics

    @contextlib.asynccontextmanager
    async def turn(self, catalog: Catalog, tenant: str, prompt_tokens: int) -> AsyncIterator[None]:
        """The body is a turn that counts: what it took of minutes is spent, its place is given back however it ends.

        Raises RateExceeded; then nothing was taken.
        """
        quota = catalog.tenant(tenant).quota
        if not quota.bounds_requests:
            yield
            return
        lease_id = uuid.uuid4().hex if quota.concurrent_requests is not None else ""
        renewing: asyncio.Task[None] | None = None
        try:
            # In the try: a call that is cancelled here may have taken its lease.
            await self._take(catalog, tenant, prompt_tokens, lease_id)
            if lease_id:
                renewing = asyncio.create_task(self._renew(tenant, lease_id))
            yield
        finally:
            if renewing is not None:
                renewing.cancel()
            if lease_id:
                with contextlib.suppress(StoreUnavailable):  # it ends by itself
                    await self._counter.release(tenant, lease_id)

    async def request(self, catalog: Catalog, tenant: str) -> None:
        """A request that runs nothing counts. Raises RateExceeded."""
        if catalog.tenant(tenant).quota.bounds_requests:
            await self._take(catalog, tenant, 0, "")

    async def _take(self, catalog: Catalog, tenant: str, prompt_tokens: int, lease_id: str) -> None:
        named = tenant if tenant in catalog.tenants else OTHER
        try:
            await self._counter.take(tenant, catalog.tenant(tenant).quota, prompt_tokens, lease_id)
        except RateExceeded as exc:
            self._metrics.refused.labels(named, exc.quota).inc()
            raise
        except StoreUnavailable as exc:
            self._metrics.unchecked.labels(named).inc()
            logger.warning("a request of tenant %s is taken without a look at its quota: %s", tenant, exc)

    async def _renew(self, tenant: str, lease_id: str) -> None:
        while True:
            await asyncio.sleep(RENEW_INTERVAL_S)
            with contextlib.suppress(StoreUnavailable):  # the next one takes it again, if it has ended
                await self._counter.renew(tenant, lease_id)
