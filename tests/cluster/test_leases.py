"""Leases through real Ray Serve: who gets which replica, how many there are, what happens when a replica goes."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from benchmarks.workload import TINY_LAYERS
from services.cluster import Cluster, deploy, explicit_settings
from services.config import ServeConfig
from services.cost import CostProfile
from services.pb.swaa.v1 import replica_pb2 as pb

from .conftest import OPTIONS
from .harness import Lease, held, is_ready, is_running, opened, pid_of, until

ENDED_S = 180.0
"""Several checks of a replica's health, and then some."""

CONNECT_S = 60.0

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.model]


def leased(channel: grpc.Channel) -> set[str]:
    """Id of the replica that a lease gets; empty if it is refused, as may be while replicas come and go."""
    with contextlib.suppress(grpc.RpcError), held(channel) as grant:
        return {grant.replica_id}
    return set()


def two_replicas(channel: grpc.Channel) -> set[str]:
    """Ids of the replicas that two leases at a time get; empty as long as there are no two."""
    ids = set()
    with contextlib.suppress(grpc.RpcError), held(channel) as first, held(channel) as second:
        ids = {first.replica_id, second.replica_id}
    return ids if len(ids) == 2 else set()


@contextlib.contextmanager
def two_held(channel: grpc.Channel) -> Iterator[dict[Lease, pb.LeaseGrant]]:
    """Leases on two replicas. Serve learns of a lease that was given back a moment later, so it may take some tries."""
    deadline_s = time.monotonic() + ENDED_S
    while time.monotonic() < deadline_s:
        with contextlib.ExitStack() as stack:
            grants: dict[Lease, pb.LeaseGrant] = {}
            with contextlib.suppress(grpc.RpcError):  # refused: others' leases have not ended yet
                grants |= [stack.enter_context(opened(channel)) for _ in range(2)]
            if len({grant.replica_id for grant in grants.values()}) == 2:
                yield grants
                return
    raise AssertionError("two leases at a time are always on one replica")


def all_places_are_free(channel: grpc.Channel) -> bool:
    """Whether four leases can be had at a time."""
    with contextlib.suppress(grpc.RpcError), contextlib.ExitStack() as stack:
        return bool([stack.enter_context(held(channel, timeout_s=5.0)) for _ in range(4)])
    return False


def test_a_lease_says_where_the_replica_is_and_what_it_serves(channel: grpc.Channel, config: ServeConfig) -> None:
    with held(channel) as grant:
        with grpc.insecure_channel(grant.address) as direct:
            grpc.channel_ready_future(direct).result(timeout=60)
        assert is_running(pid_of(grant))
    model = grant.model
    assert (model.num_layers, model.head_dim, model.vocab_size, model.dtype) == (TINY_LAYERS, 16, 49152, "float32")
    assert model.max_session_tokens == 2048
    profile = CostProfile.from_mapping(json.loads(model.cost_profile_json))
    assert profile.model_fingerprint == model.fingerprint
    assert (grant.queued_tokens, grant.is_hot) == (0, False)


def test_a_session_keeps_its_replica_and_sessions_are_spread(channel: grpc.Channel) -> None:
    replicas: dict[str, str] = {}
    for session_id in (f"session-{n}" for n in range(16)):
        for _ in range(2):
            with held(channel, session_id) as grant:
                assert replicas.setdefault(session_id, grant.replica_id) == grant.replica_id
    assert len(set(replicas.values())) == 2


def test_without_a_session_the_replica_with_the_fewest_leases_is_taken(channel: grpc.Channel) -> None:
    until("all places are free", lambda: all_places_are_free(channel), ENDED_S)
    for _ in range(4):
        with held(channel, "some-session") as grant, held(channel) as other:
            assert other.replica_id != grant.replica_id


def test_replicas_take_no_more_leases_than_they_may_and_one_more_waits(channel: grpc.Channel) -> None:
    until("all places are free", lambda: all_places_are_free(channel), ENDED_S)
    with contextlib.ExitStack() as stack:
        first = Lease(channel)
        taken = [first.grant(), *(stack.enter_context(held(channel)) for _ in range(3))]
        ids = [grant.replica_id for grant in taken]
        assert sorted(map(ids.count, set(ids))) == [2, 2]

        waiting = Lease(channel)
        stack.callback(waiting.cancel)
        granted: queue.Queue[str] = queue.Queue()
        thread = threading.Thread(target=lambda: granted.put(waiting.grant().replica_id))
        thread.start()
        with pytest.raises(queue.Empty):
            granted.get(timeout=1)
        with pytest.raises(grpc.RpcError) as refused:
            Lease(channel).grant()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

        first.cancel()
        assert granted.get(timeout=120) == taken[0].replica_id
        thread.join()


def test_leases_whose_cancellation_serve_loses_do_not_fill_a_replica(channel: grpc.Channel) -> None:
    for _ in range(200):
        lease = Lease(channel, timeout_s=1.0)
        try:
            lease.grant()
        except grpc.RpcError:
            break  # so many are lost that all places are taken
        lease.cancel()  # while the proxy is still busy with the grant

    until("leases that nobody holds are ended", lambda: all_places_are_free(channel), ENDED_S)


def test_a_killed_replica_is_avoided_at_once_and_replaced(channel: grpc.Channel) -> None:
    before = until("there are two replicas", lambda: two_replicas(channel), ENDED_S)
    with held(channel, "some-session") as grant:
        os.kill(pid_of(grant), signal.SIGKILL)
        for _ in range(5):
            with held(channel, "some-session") as other:
                assert other.replica_id != grant.replica_id
    after = until("there are two replicas again", lambda: two_replicas(channel), ENDED_S)
    assert grant.replica_id not in after
    assert len(before & after) == 1, "the other one was left alone"


def test_a_replica_that_is_replaced_by_another_version_waits_for_its_leases(
    channel: grpc.Channel, cluster: Cluster, config: ServeConfig
) -> None:
    """A lease without a turn is ended after some time; then there is nothing to wait for, and it has not broken."""
    args = {**explicit_settings(config), **OPTIONS, "redis_url": cluster.redis_url, "min_replicas": "2"}
    # Left only when it has ended: a thread that still asked for a Ray that was shut down would start another.
    with ThreadPoolExecutor(1) as pool:
        with two_held(channel) as grants:
            ids = {grant.replica_id for grant in grants.values()}
            deployment = pool.submit(deploy, args, cluster.replicas)  # Serve replaces one after the other
            until("one of them is to go", lambda: leased(channel) - ids or deployment.done(), ENDED_S)
            time.sleep(2)
            for lease, grant in grants.items():
                serves = is_running(pid_of(grant)) and is_ready(grpc.insecure_channel(grant.address), CONNECT_S)
                assert serves or lease.call.code() is grpc.StatusCode.OK
        deployment.result(timeout=ENDED_S)
    until("both are gone", lambda: not any(is_running(pid_of(grant)) for grant in grants.values()), ENDED_S)
    assert not ids & until("there are two replicas", lambda: two_replicas(channel), ENDED_S)
