"""Tenants are held to the catalogue's quotas before anything is planned, and places come back however a turn ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import AsyncMock

import grpc
import pytest
from prometheus_client import CollectorRegistry

from services.errors import RateExceeded, StoreUnavailable
from services.gateway import quotas as quotas_module
from services.gateway.catalog import Catalog
from services.gateway.quotas import Quotas
from services.gateway.sla import TenantPolicy
from services.gateway.turns import TurnPlanner
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.quota import Quota
from services.telemetry.metrics import QuotaMetrics
from tests.services.replica.builders import asynchronous
from tests.services.tiny_service import tiny_catalog, until

from .tenants import RAW, Tenants, tenants

BOUND = Quota(requests_per_minute=4, prompt_tokens_per_minute=300, concurrent_requests=1)


@dataclass
class Counter:
    """Counts in memory; says what it is told to say."""

    error: Exception | None = None
    taken: list[tuple[str, bool]] = field(default_factory=list)
    prompts: list[tuple[str, int]] = field(default_factory=list)
    leases: set[str] = field(default_factory=set)
    prefills: set[str] = field(default_factory=set)
    renewed: int = 0

    async def take(self, tenant: str, quota: Quota, lease_id: str) -> None:
        if self.error is not None:
            raise self.error
        if lease_id and len(self.leases) >= (quota.concurrent_requests or 0):
            raise RateExceeded("full", "concurrent_requests", 1000.0)
        self.taken.append((tenant, bool(lease_id)))
        if lease_id:
            self.leases.add(lease_id)
            self.prefills.add(lease_id)

    async def take_prompt(self, tenant: str, quota: Quota, num_tokens: int) -> None:
        if self.error is not None:
            raise self.error
        if num_tokens > (quota.prompt_tokens_per_minute or 0):
            raise RateExceeded("too long", "prompt_tokens_per_minute")
        self.prompts.append((tenant, num_tokens))

    async def renew(self, tenant: str, lease_id: str) -> None:
        self.renewed += 1
        raise StoreUnavailable("away")

    async def prefilled(self, tenant: str, lease_id: str) -> None:
        self.prefills.discard(lease_id)

    async def release(self, tenant: str, lease_id: str) -> None:
        self.leases.discard(lease_id)


def catalog(**quota: Quota) -> Catalog:
    policies = {name: TenantPolicy(quota=bounds) for name, bounds in quota.items()}
    return replace(tiny_catalog(), tenants={"default": TenantPolicy(), **policies})


@dataclass(frozen=True)
class Held:
    quotas: Quotas
    counter: Counter
    registry: CollectorRegistry

    def count(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


def held(**changes: Any) -> Held:
    counter, registry = Counter(**changes), CollectorRegistry()
    return Held(Quotas(counter, QuotaMetrics(registry)), counter, registry)


@asynchronous
async def test_tenants_without_a_quota_are_not_counted() -> None:
    made = held(error=AssertionError("asked"))
    async with made.quotas.turn(catalog(acme=BOUND), "rival"):
        pass
    async with made.quotas.turn(catalog(acme=Quota(stored_bytes=5)), "acme"):
        pass
    await made.quotas.request(catalog(acme=BOUND), "rival")
    await made.quotas.prompt(catalog(acme=BOUND), "rival", 10)
    await made.quotas.prompt(catalog(acme=Quota(concurrent_requests=1)), "acme", 10)


@asynchronous
async def test_the_default_holds_for_tenants_that_are_not_named() -> None:
    made = held()
    await made.quotas.request(catalog(default=BOUND, acme=Quota()), "rival")
    await made.quotas.request(catalog(default=BOUND, acme=Quota()), "acme")
    assert made.counter.taken == [("rival", False)]


@pytest.mark.parametrize("end", [None, ValueError, asyncio.CancelledError, GeneratorExit])
@asynchronous
async def test_a_place_is_given_back_however_a_turn_ends(end: type[BaseException] | None) -> None:
    made = held()

    async def turn() -> None:
        async with made.quotas.turn(catalog(acme=BOUND), "acme"):
            assert len(made.counter.leases) == 1
            if end is not None:
                raise end

    with contextlib.nullcontext() if end is None else pytest.raises(end):
        await turn()
    assert made.counter.leases == set()
    assert made.counter.taken == [("acme", True)]


@asynchronous
async def test_the_first_token_gives_the_place_among_prefills_back_and_the_turn_keeps_the_other() -> None:
    made = held()
    bound = Quota(concurrent_requests=1, concurrent_prefills=1)
    async with made.quotas.turn(catalog(acme=bound), "acme") as first_token:
        assert len(made.counter.prefills) == 1
        for _ in range(2):
            first_token()
        await until(lambda: not made.counter.prefills)
        assert len(made.counter.leases) == 1
    assert made.counter.leases == set()


@asynchronous
async def test_refusals_are_counted_by_names_of_the_catalogue() -> None:
    made = held(error=RateExceeded("used up", "requests_per_minute", 5.0))
    known = catalog(default=BOUND, acme=BOUND)
    for tenant in ("acme", "made-up", "also-made-up"):
        with pytest.raises(RateExceeded):
            await made.quotas.request(known, tenant)
    labels = {"quota": "requests_per_minute"}
    assert made.count("swaa_quota_refusals_total", tenant="acme", **labels) == 1
    assert made.count("swaa_quota_refusals_total", tenant="other", **labels) == 2


@asynchronous
async def test_a_store_that_is_away_stops_nobody_and_is_counted() -> None:
    made = held(error=StoreUnavailable("away"))
    async with made.quotas.turn(catalog(acme=BOUND), "acme"):
        await made.quotas.prompt(catalog(acme=BOUND), "acme", 10)
    assert made.count("swaa_quota_unchecked_total", tenant="acme") == 2


@asynchronous
async def test_leases_are_renewed_while_the_turn_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas_module, "RENEW_INTERVAL_S", 0.001)
    made = held()
    async with made.quotas.turn(catalog(acme=BOUND), "acme"):
        await until(lambda: made.counter.renewed > 2)
    await asyncio.sleep(0)
    renewed = made.counter.renewed
    await asyncio.sleep(0.01)
    assert made.counter.renewed == renewed


@asynccontextmanager
async def bounded() -> AsyncIterator[tuple[Tenants, Counter]]:
    counter = Counter()
    async with tenants(catalog=catalog(acme=BOUND), counter=counter) as all_:
        yield all_, counter


@asynchronous
async def test_turns_and_plans_count_and_replays_cost_no_tokens() -> None:
    async with bounded() as (all_, counter):
        keyed: dict[str, Any] = {"x_swaa_session": "new", "x_swaa_idempotency_key": "k"}
        await all_.acme.turn(**keyed)
        await all_.acme.turn(**keyed)
        plan = pb.PlanRequest(prompt=pb.Prompt(text=RAW))
        await all_.acme.stub.Plan(plan, metadata=all_.acme.metadata())
        await all_.acme.stub.Plan(pb.PlanRequest(prompt_tokens=50), metadata=all_.acme.metadata())
        turn, plan_ = ("acme", True), ("acme", False)
        assert counter.taken == [turn, turn, plan_, plan_]
        assert counter.prompts == [("acme", len(RAW))]
        assert counter.leases == set()
        await all_.rival.turn()
        assert len(counter.taken) == 4


@asynchronous
async def test_a_stream_that_has_its_first_token_is_no_prefill_any_more() -> None:
    bound = Quota(concurrent_requests=1, concurrent_prefills=1)
    counter = Counter()
    async with tenants(catalog=catalog(acme=bound), counter=counter) as all_:
        request = pb.GenerateRequest(prompt=pb.Prompt(text=RAW), sampling=pb.Sampling(max_tokens=20, ignore_eos=True))
        stream = all_.acme.stub.Generate(request, metadata=all_.acme.metadata())
        async for event in stream:
            kind = event.WhichOneof("event")
            if kind == "accepted":
                assert len(counter.prefills) == 1
            if kind == "token":
                break
        await until(lambda: not counter.prefills)
        stream.cancel()
        await until(lambda: not counter.leases)


@asynchronous
async def test_a_request_that_is_wrong_costs_a_request_and_no_tokens() -> None:
    async with bounded() as (all_, counter):
        wrong: list[dict[str, Any]] = [{"x_swaa_sla": "gold"}, {"x_swaa_session": "0" * 32}]
        for headers in wrong:
            with pytest.raises(grpc.aio.AioRpcError):
                await all_.acme.turn(**headers)
        assert (counter.taken, counter.prompts) == ([("acme", True)] * 2, [])
        assert counter.leases == set()


@asynchronous
async def test_a_refusal_is_told_by_both_wires_before_anything_is_planned() -> None:
    async with bounded() as (all_, counter):
        counter.error = RateExceeded("requests_per_minute: used up", "requests_per_minute", 1500.2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await all_.acme.turn()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailing: Any = caught.value.trailing_metadata()
        assert dict(trailing)["retry-after-ms"] == "1501"
        body = {"model": "tiny", "prompt": "why"}
        for stream in (False, True):
            answer = await all_.acme.ask("POST", "/v1/completions", json={**body, "stream": stream})
            assert answer.status_code == 429
            assert answer.headers["retry-after"] == "2"
            assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        assert "x-swaa-recipe" not in answer.headers
        assert not await all_.service.rig.used_blocks()


@asynchronous
async def test_who_has_no_request_left_has_nothing_read_and_nothing_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bounded() as (all_, counter):
        session_id = await all_.acme.new_session()
        counter.error = RateExceeded("requests_per_minute: used up", "requests_per_minute", 1500.2)
        understand = AsyncMock()
        monkeypatch.setattr(TurnPlanner, "understand", understand)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await all_.acme.turn(x_swaa_session=session_id)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        understand.assert_not_called()


@asynchronous
async def test_a_prompt_that_is_too_much_gives_its_place_back() -> None:
    known = catalog(acme=Quota(prompt_tokens_per_minute=len(RAW) - 1, concurrent_requests=1))
    counter = Counter()
    async with tenants(catalog=known, counter=counter) as all_:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await all_.acme.turn()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (counter.taken, counter.prompts, counter.leases) == ([("acme", True)], [], set())
        assert not await all_.service.rig.used_blocks()


@asynchronous
async def test_a_cancelled_turn_gives_its_place_back() -> None:
    async with bounded() as (all_, counter):
        request = pb.GenerateRequest(prompt=pb.Prompt(text=RAW), sampling=pb.Sampling(max_tokens=800, ignore_eos=True))
        call = all_.acme.stub.Generate(request, metadata=all_.acme.metadata())
        await call.read()
        assert len(counter.leases) == 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await all_.acme.turn()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        call.cancel()
        await until(lambda: not counter.leases)
        await all_.acme.turn()


@asynchronous
async def test_what_a_tenant_stores_is_bounded_by_its_own_quota() -> None:
    async with tenants(catalog=catalog(acme=Quota(stored_bytes=10))) as all_:
        refused = (await all_.acme.turn(x_swaa_session="new"))[-1].finish.session
        assert not refused.saved
        assert "quota" in refused.error.lower()
        session_id = await all_.rival.new_session()
        request = pb.ExportSessionRequest(session_id=session_id)
        parts = [part async for part in all_.rival.stub.ExportSession(request, metadata=all_.rival.metadata())]
        chunks = [pb.ImportSessionRequest(chunk=part.chunk) for part in parts[1:]]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await all_.acme.stub.ImportSession(iter(chunks), metadata=all_.acme.metadata())
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await all_.rival.stub.ForkSession(pb.ForkSessionRequest(session_id=session_id), metadata=all_.rival.metadata())


@asynchronous
async def test_classes_and_priority_are_bounded_by_the_tenant_of_the_key() -> None:
    policy = TenantPolicy(max_priority=3, sla_classes=frozenset({"balanced"}))
    known = replace(tiny_catalog(), tenants={"default": TenantPolicy(), "acme": policy})
    async with tenants(catalog=known) as all_:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await all_.acme.turn(x_swaa_sla="interactive")
        assert "not open to this tenant" in str(caught.value.details())
        assert (await all_.acme.turn())[0].accepted.objective.priority == 3
        assert (await all_.rival.turn(x_swaa_sla="interactive"))[0].accepted.objective.priority == 20
        for caller, names in ((all_.acme, ["balanced"]), (all_.rival, ["quality", "balanced", "interactive"])):
            told = await caller.stub.ListRecipes(pb.ListRecipesRequest(), metadata=caller.metadata())
            assert [sla.name for sla in told.sla_classes] == names
            by_http = (await caller.ask("GET", "/api/recipes")).json()["sla_classes"]
            assert [sla["name"] for sla in by_http] == names
