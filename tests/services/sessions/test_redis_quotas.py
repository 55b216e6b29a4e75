"""Quotas, counted in a real Redis: all or nothing, the same for everybody who asks, and gone by themselves."""

from __future__ import annotations

import asyncio

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.errors import RateExceeded, StoreUnavailable
from services.quota import NO_QUOTA, Quota
from services.sessions.embedded_redis import EmbeddedRedis
from services.sessions.redis_quotas import RedisQuotas

from .builders import asynchronous
from .conftest import OpenStore, store_opener

pytestmark = pytest.mark.redis

PATIENCE_S = 60.0
"""A busy machine is not what is tested."""

BUCKETS, LEASES, PREFILLS = "swaa:{acme}:buckets", "swaa:{acme}:leases", "swaa:{acme}:prefills"
MINUTE_MS = 60_000


async def refused(quotas: RedisQuotas, quota: Quota, lease_id: str = "") -> RateExceeded:
    with pytest.raises(RateExceeded) as caught:
        await quotas.take("acme", quota, lease_id)
    return caught.value


async def prompt_refused(quotas: RedisQuotas, quota: Quota, num_tokens: int) -> RateExceeded:
    with pytest.raises(RateExceeded) as caught:
        await quotas.take_prompt("acme", quota, num_tokens)
    return caught.value


def now_ms(raw: redis.Redis) -> float:
    seconds, micros = raw.time()
    return float(seconds) * 1e3 + micros / 1e3


def pass_by(raw: redis.Redis, passed_ms: int) -> None:
    """As if so much time had passed since the last request."""
    raw.hincrby(BUCKETS, "at_ms", -passed_ms)


@asynchronous
async def test_requests_of_a_minute(open_store: OpenStore, raw: redis.Redis) -> None:
    quota = Quota(requests_per_minute=3)
    async with open_store() as store:
        quotas = store.quotas(PATIENCE_S)
        for _ in range(3):
            await quotas.take("acme", quota, "")
        error = await refused(quotas, quota)
        assert error.quota == "requests_per_minute"
        assert "this tenant's quota of 3" in str(error)
        assert error.retry_after_ms is not None
        assert 0 < error.retry_after_ms <= MINUTE_MS / 3
        pass_by(raw, MINUTE_MS // 3)
        await quotas.take("acme", quota, "")
        assert (await refused(quotas, quota)).quota == "requests_per_minute"
        await quotas.take("rival", quota, "")


@asynchronous
async def test_a_refused_request_costs_nothing(open_store: OpenStore, raw: redis.Redis) -> None:
    quota = Quota(requests_per_minute=5, prompt_tokens_per_minute=100, concurrent_requests=1)
    async with open_store() as store:
        quotas = store.quotas(PATIENCE_S)
        await quotas.take("acme", quota, "one")
        await quotas.take_prompt("acme", quota, 60)
        before = raw.hgetall(BUCKETS), raw.zrange(LEASES, 0, -1)
        assert (await refused(quotas, quota, "two")).quota == "concurrent_requests"
        tokens = await prompt_refused(quotas, quota, 90)
        assert "the prompt has 90 new tokens, and of this tenant's quota of 100 " in str(tokens)
        assert (raw.hgetall(BUCKETS), raw.zrange(LEASES, 0, -1)) == before
        await quotas.take_prompt("acme", quota, 40)


@asynchronous
async def test_what_is_larger_than_a_minutes_worth_is_never_taken(open_store: OpenStore) -> None:
    async with open_store() as store:
        quota = Quota(prompt_tokens_per_minute=100)
        assert (await prompt_refused(store.quotas(PATIENCE_S), quota, 101)).retry_after_ms is None
        await store.quotas(PATIENCE_S).take_prompt("acme", quota, 100)


@asynchronous
async def test_places_are_given_back_or_end_by_themselves(open_store: OpenStore, raw: redis.Redis) -> None:
    quota = Quota(concurrent_requests=2)
    async with open_store() as store:
        quotas = store.quotas(PATIENCE_S)
        for lease_id in ("one", "two"):
            await quotas.take("acme", quota, lease_id)
        error = await refused(quotas, quota, "three")
        assert (error.quota, str(error)) == (
            "concurrent_requests",
            "concurrent_requests is 2: this tenant's quota is 2",
        )
        await quotas.release("acme", "one")
        await quotas.take("acme", quota, "three")
        raw.zadd(LEASES, {"two": 1})  # its gateway has died: nobody renews it
        await quotas.take("acme", quota, "four")
        assert raw.zrange(LEASES, 0, -1) == [b"three", b"four"]
        assert 0 < raw.pttl(LEASES) <= quotas.lease_ttl_ms


@asynchronous
async def test_a_turn_that_has_its_first_token_is_no_prefill_any_more(open_store: OpenStore, raw: redis.Redis) -> None:
    quota = Quota(concurrent_requests=3, concurrent_prefills=1)
    async with open_store() as store:
        quotas = store.quotas(PATIENCE_S)
        await quotas.take("acme", quota, "one")
        error = await refused(quotas, quota, "two")
        assert str(error) == "concurrent_prefills is 1: this tenant's quota is 1"
        assert error.retry_after_ms == 1000.0
        await quotas.prefilled("acme", "one")
        await quotas.renew("acme", "one")
        await quotas.take("acme", quota, "two")
        assert (raw.zrange(LEASES, 0, -1), raw.zrange(PREFILLS, 0, -1)) == ([b"one", b"two"], [b"two"])
        await quotas.release("acme", "two")
        assert raw.zrange(PREFILLS, 0, -1) == [], "one that ends without a token gives both places back"
        await quotas.take("acme", quota, "three")
        raw.zadd(PREFILLS, {"three": 1})  # its gateway has died
        await quotas.take("acme", quota, "four")


@asynchronous
async def test_a_renewed_lease_lives_on_and_one_that_was_lost_is_taken_again(
    open_store: OpenStore, raw: redis.Redis
) -> None:
    quota = Quota(concurrent_requests=1)
    async with open_store() as store:
        quotas = store.quotas(PATIENCE_S)
        await quotas.take("acme", quota, "one")
        raw.zadd(LEASES, {"one": now_ms(raw) + 1})
        before = now_ms(raw)
        await quotas.renew("acme", "one")
        assert raw.zcount(LEASES, before + quotas.lease_ttl_ms - 1, "+inf") == 1
        raw.flushall()
        await quotas.renew("acme", "one")
        assert (await refused(quotas, quota, "two")).quota == "concurrent_requests"


@asynchronous
async def test_the_same_call_sent_again_is_one(open_store: OpenStore) -> None:
    quota = Quota(requests_per_minute=1, concurrent_requests=1)
    async with open_store() as store:
        for _ in range(3):
            await store.quotas(PATIENCE_S).take("acme", quota, "one")
        assert (await refused(store.quotas(PATIENCE_S), quota, "two")).quota == "concurrent_requests"


@asynchronous
async def test_gateways_share_what_there_is(open_store: OpenStore) -> None:
    quota = Quota(requests_per_minute=2)
    async with open_store() as one, open_store() as other:
        took = await asyncio.gather(
            *(store.quotas(PATIENCE_S).take("acme", quota, "") for store in (one, other) for _ in range(10)),
            return_exceptions=True,
        )
        assert sum(answer is None for answer in took) == 2
        assert sum(isinstance(answer, RateExceeded) for answer in took) == 18


@asynchronous
async def test_a_quota_that_changes_holds_at_once(open_store: OpenStore) -> None:
    async with open_store() as store:
        quotas = store.quotas(PATIENCE_S)
        await quotas.take("acme", Quota(requests_per_minute=1000), "")
        await quotas.take("acme", Quota(requests_per_minute=1), "")
        await refused(quotas, Quota(requests_per_minute=1))
        await quotas.take("acme", NO_QUOTA, "")
        await quotas.take_prompt("acme", NO_QUOTA, 10**12)


@asynchronous
async def test_a_clock_that_goes_back_does_no_harm(open_store: OpenStore, raw: redis.Redis) -> None:
    quota = Quota(requests_per_minute=2)
    async with open_store() as store:
        await store.quotas(PATIENCE_S).take("acme", quota, "")
        pass_by(raw, -10 * MINUTE_MS)
        await store.quotas(PATIENCE_S).take("acme", quota, "")
        await refused(store.quotas(PATIENCE_S), quota)


@asynchronous
async def test_nothing_stays_of_a_tenant_that_is_silent(open_store: OpenStore, raw: redis.Redis) -> None:
    async with open_store() as store:
        await store.quotas(PATIENCE_S).take("acme", Quota(5, 5, 5), "one")
        assert all(0 < raw.pttl(key) <= 2 * MINUTE_MS for key in raw.keys("*"))
        assert set(raw.keys("*")) == {BUCKETS.encode(), LEASES.encode(), PREFILLS.encode()}


@asynchronous
async def test_an_outage_is_told(private_server: EmbeddedRedis) -> None:
    async with store_opener(private_server)() as store:
        private_server.stop()
        with pytest.raises(StoreUnavailable):
            await store.quotas(PATIENCE_S).take("acme", Quota(5, 5, 5), "one")


ROUNDING = 1e-6
STEPS = st.lists(st.tuples(st.integers(0, 120), st.integers(0, 30_000)), max_size=25)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, st.integers(1, 100))
@example([(0, 0), (0, 30_000), (1, 30_000), (31, 1_900)], 31)  # time adds nothing to what is full
def test_no_more_is_taken_than_a_minutes_worth_and_what_time_adds(
    server: EmbeddedRedis, raw: redis.Redis, steps: list[tuple[int, int]], bound: int
) -> None:
    quota = Quota(prompt_tokens_per_minute=bound)

    async def run() -> None:
        raw.flushall()
        # Time that is not counted here, as real time goes on, only adds to what is left.
        least_left = float(bound)
        taken, passed_ms, started_ms = 0, 0, now_ms(raw)
        async with store_opener(server)() as store:
            for tokens, pause_ms in steps:
                if raw.exists(BUCKETS):
                    pass_by(raw, pause_ms)
                    passed_ms += pause_ms
                    least_left = min(bound, least_left + pause_ms * bound / MINUTE_MS)
                try:
                    await store.quotas(PATIENCE_S).take_prompt("acme", quota, tokens)
                    taken += tokens
                    least_left = max(0.0, least_left - tokens)
                except RateExceeded:
                    assert tokens > least_left - ROUNDING
                assert taken <= bound + (passed_ms + now_ms(raw) - started_ms + 1) * bound / MINUTE_MS

    asyncio.run(run())
