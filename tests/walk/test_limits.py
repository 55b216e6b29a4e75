"""A small service: requests that go away give their memory back, late ones end, old sessions expire."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.pb.swaa.v1 import long_context_pb2 as pb

from .harness import KV_BYTES_PER_TOKEN, Service, log_of, open_turn, read_until, refused, run_turn

pytestmark = [pytest.mark.model, pytest.mark.redis]

KV_MEMORY_MIB = KV_BYTES_PER_TOKEN * 4500 >> 20
POOL_TOKENS = (KV_MEMORY_MIB << 20) // KV_BYTES_PER_TOKEN
"""Of full attention: about 4,500."""

BIG = 3000
"""Two requests of so many tokens do not fit."""

FULL = {"x-swaa-recipe": "full"}


@pytest.fixture(scope="module")
def small(walk_folder: Path) -> Iterator[Service]:
    folder = walk_folder / "small"
    folder.mkdir()
    with Service(folder, kv_memory_mib=str(KV_MEMORY_MIB), session_ttl_s="1", drain_s="0") as service:
        yield service  # its last test stops it


def start_big(service: Service, text: str = "The ship", **options: Any) -> Any:
    """A request that reserves most of the memory, and would take minutes."""
    return open_turn(service, text, FULL, max_tokens=BIG, ignore_eos=True, **options)


def assert_memory_is_free(service: Service) -> None:
    """A big request gets its first token soon, so nothing else holds memory."""
    call = start_big(service, timeout_s=120)
    read_until(call, "token")
    call.cancel()


def mid_decode(service: Service) -> Any:
    call = start_big(service)
    read_until(call, "token", 2)
    return call


def mid_prefill(service: Service) -> Any:
    call = open_turn(service, log_of(80), FULL, max_tokens=100, ignore_eos=True)
    events = read_until(call, "prefill")
    assert events[-1].prefill.done_tokens < events[-1].prefill.total_tokens
    return call


def waiting(service: Service) -> Any:
    first = mid_decode(service)
    second = start_big(service)
    read_until(second, "accepted")
    first.cancel()
    return second


def test_two_big_requests_do_not_fit(small: Service) -> None:
    assert BIG < POOL_TOKENS < 2 * BIG
    first = mid_decode(small)
    second = start_big(small, timeout_s=3)
    with pytest.raises(grpc.RpcError):
        read_until(second, "prefill")
    assert second.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    first.cancel()
    assert_memory_is_free(small)


@pytest.mark.parametrize("reach", [mid_prefill, mid_decode, waiting])
def test_a_client_that_cancels_gives_the_memory_back(small: Service, reach: Callable[[Service], Any]) -> None:
    call = reach(small)
    call.cancel()
    assert call.code() is grpc.StatusCode.CANCELLED
    assert_memory_is_free(small)


def test_a_client_that_disappears_gives_the_memory_back(small: Service) -> None:
    with grpc.insecure_channel(small.address) as channel:
        request = pb.GenerateRequest(
            prompt=pb.Prompt(text="The ship"), sampling=pb.Sampling(max_tokens=BIG, ignore_eos=True)
        )
        call = channel.unary_stream(
            "/swaa.v1.LongContext/Generate", pb.GenerateRequest.SerializeToString, pb.GenerateResponse.FromString
        )(request, metadata=tuple(FULL.items()))
        read_until(call, "token")
    assert_memory_is_free(small)


def test_a_deadline_in_mid_prefill_ends_the_request(small: Service) -> None:
    text = log_of(170)
    started_s = time.monotonic()
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
        list(open_turn(small, text, FULL, timeout_s=1.0, max_tokens=800, ignore_eos=True))
    assert time.monotonic() - started_s < 15
    assert_memory_is_free(small)


def test_what_can_never_fit_is_refused_at_once(small: Service) -> None:
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "KV blocks of 32 tokens, the pool has", "shorten the prompt"):
        run_turn(small, "The ship", FULL, max_tokens=POOL_TOKENS + 100)
    turn = open_turn(small, "The ship", {"x-swaa-recipe": "sliding"}, max_tokens=POOL_TOKENS + 100)
    assert read_until(turn, "token"), "a recipe that keeps less fits"
    turn.cancel()


def test_sessions_expire(small: Service) -> None:
    headers = {"x-swaa-session": "new"}
    session_id = run_turn(small, "The ship", headers, max_tokens=2).session_id
    time.sleep(1.5)
    for call in (
        lambda: small.stub.GetSession(pb.GetSessionRequest(session_id=session_id)),
        lambda: small.stub.ForkSession(pb.ForkSessionRequest(session_id=session_id)),
        lambda: run_turn(small, " left", {"x-swaa-session": session_id}),
    ):
        with refused(grpc.StatusCode.NOT_FOUND, session_id, "expired at 20"):
            call()
    assert list(small.stub.ListSessions(pb.ListSessionsRequest()).sessions) == []


def test_a_service_that_stops_ends_what_still_runs(small: Service) -> None:
    """The last test here: it stops the service, which has no time to drain. (`test_restart` starts such ones again.)"""
    call = mid_decode(small)
    assert small.stop() == 0
    with pytest.raises(grpc.RpcError):
        list(call)
    assert not small.redis_processes()
