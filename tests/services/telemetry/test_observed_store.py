"""What a store's calls are counted as. That it is still the same store, `test_store_contract` says."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from services.errors import SessionNotFound, StoreUnavailable
from services.telemetry.metrics import StoreMetrics
from services.telemetry.observed_store import ObservedStore
from tests.services.replica.builders import asynchronous
from tests.services.sessions.fake_store import FakeSessionStore


class Away(FakeSessionStore):
    async def release(self, tenant: str, session_id: str, owner: str) -> None:
        raise StoreUnavailable("gone")


@asynchronous
async def test_calls_are_timed_and_those_without_an_answer_are_counted() -> None:
    registry = CollectorRegistry()
    store = ObservedStore(Away(), StoreMetrics(registry))
    with pytest.raises(SessionNotFound):
        await store.get("acme", "chat")
    with pytest.raises(StoreUnavailable):
        await store.release("acme", "chat", "me")

    def calls(operation: str) -> tuple[float | None, float | None]:
        by = {"operation": operation}
        count = registry.get_sample_value("swaa_store_seconds_count", by)
        return count, registry.get_sample_value("swaa_store_errors_total", by)

    assert calls("get") == (1, None)
    assert calls("release") == (1, 1)
