"""Real replicas of a tiny model behind real gRPC, picked by a directory that stands in for Ray Serve's proxy."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.certificate_source import CertificateSource, grpc_server_credentials
from services.errors import ReplicaLost, SessionBusy
from services.gateway import remote_replicas
from services.gateway.failover import run_turn
from services.gateway.remote_replicas import RemoteReplicas
from services.gateway.replicas import LeasedReplica
from services.pb.swaa.v1 import replica_pb2 as pb
from services.pb.swaa.v1 import replica_pb2_grpc as pb_grpc
from services.replica.job import Done, Job, SessionUse
from services.replica.replica import Replica
from services.replica.server import ReplicaServer
from services.replica.wire import facts_message
from services.replica.wire_backlog import backlog_message
from services.telemetry.tracing import Tracing
from swaa_runtime.errors import DeadlineExceeded, InvalidRequest
from swaa_runtime.outputs import PrefillProgress, TokenOutput
from tests.services.certificates import CertificateFolder, issued_in
from tests.services.replica.builders import (
    NEW,
    Ran,
    Rig,
    asynchronous,
    make_job,
    make_replica,
    next_use,
    running_engine,
)
from tests.services.replica.builders import run_turn as run_local
from tests.services.replica.test_wire import FACTS
from tests.services.sessions.fake_store import FakeSessionStore
from tests.services.telemetry.tracing import Spans
from tests.swaa_runtime.builders import LetterDecoder, engine_config


@dataclass
class Node:
    """One replica and its server."""

    rig: Rig
    replica: Replica
    server: ReplicaServer


@dataclass
class Directory(pb_grpc.ReplicaDirectoryServicer):
    """Grants the first of its nodes."""

    nodes: list[Node] = field(default_factory=list)
    held: int = 0
    metadata: list[Any] = field(default_factory=list)

    async def Lease(self, request: pb.LeaseRequest, context: Any) -> AsyncIterator[pb.LeaseGrant]:  # noqa: N802
        self.metadata.append(dict(context.invocation_metadata()))
        if not self.nodes:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no replicas")
        node = self.nodes[0]
        self.held += 1
        try:
            yield pb.LeaseGrant(
                replica_id="replica",
                address=node.server.address,
                queued_tokens=node.replica.queued_tokens,
                backlog=backlog_message(node.replica.backlog),
                is_hot=node.replica.is_hot(request.tenant, request.session_id, request.version),
                model=facts_message(FACTS),
            )
            await asyncio.Event().wait()
        finally:
            self.held -= 1


@dataclass
class Cluster:
    directory: Directory
    replicas: RemoteReplicas
    store: FakeSessionStore


@contextlib.asynccontextmanager
async def running(
    num_nodes: int = 1,
    max_step_tokens: int = 32,
    application: str = "",
    model_folder: Path = Path(),
    tracing: Tracing | None = None,
    certificates: CertificateSource | None = None,
    gateways: CertificateSource | None = None,
) -> AsyncIterator[Cluster]:
    """`certificates`: of replicas; `gateways`: of gateways."""
    async with contextlib.AsyncExitStack() as stack:
        store, directory = FakeSessionStore(), Directory()
        for _ in range(num_nodes):
            rig = await stack.enter_async_context(running_engine(engine_config(max_step_tokens=max_step_tokens)))
            replica = make_replica(rig, store, tracing)
            credentials = None if certificates is None else grpc_server_credentials(certificates)
            server = ReplicaServer(replica, model_folder, "127.0.0.1", 0, credentials)
            await server.start()
            stack.push_async_callback(server.stop, 0)
            directory.nodes.append(Node(rig, replica, server))
        proxy = grpc.aio.server()
        pb_grpc.add_ReplicaDirectoryServicer_to_server(directory, proxy)  # type: ignore[no-untyped-call]
        port = proxy.add_insecure_port("127.0.0.1:0")
        await proxy.start()
        stack.push_async_callback(proxy.stop, 0)
        replicas = RemoteReplicas(f"127.0.0.1:{port}", application, gateways)
        stack.push_async_callback(replicas.close)
        yield Cluster(directory, replicas, store)


async def run_remote(cluster: Cluster, job: Job) -> Ran:
    async with cluster.replicas.lease(job.session) as replica:
        return Ran(tuple([event async for event in replica.generate(job)]))


async def until(condition: Any) -> None:
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110 - it looks at things that tell nobody
            await asyncio.sleep(0.01)


@asynchronous
async def test_a_turn_over_the_wire_is_the_turn() -> None:
    async with running() as cluster:
        expected = await run_local(cluster.directory.nodes[0].replica, make_job(40))
        ran = await run_remote(cluster, make_job(40))
        assert ran.tokens == expected.tokens
        assert [event.num_computed_tokens for event in ran.progress] == [32, 40]
        assert ran.done.session is None
        await until(lambda: cluster.directory.held == 0)


@asynchronous
async def test_a_trace_goes_on_over_the_wire_down_to_the_store() -> None:
    spans = Spans()
    tracing = Tracing(spans.provider)
    async with running(tracing=tracing) as cluster:
        await run_remote(cluster, make_job(40, NEW))
        await cluster.directory.nodes[0].rig.forget()
        spans.clear()
        with tracing.span("gateway.answer") as span:
            again = make_job(10, await next_use(cluster.store), trace_headers=span.headers)
            ran = await run_remote(cluster, again)
        assert ran.done.session is not None
        assert ran.done.session.history == "restored"
    assert len(spans.trace_ids()) == 1
    assert spans.parents() == {
        "gateway.answer": None,
        "replica.turn": "gateway.answer",
        "store.restore": "replica.turn",
        "replica.queue": "replica.turn",
        "replica.prefill": "replica.turn",
        "replica.decode": "replica.turn",
        "store.save": "replica.turn",
    }


@asynchronous
async def test_a_session_over_the_wire_is_hot_where_it_ran() -> None:
    async with running(application="big") as cluster:
        first = await run_remote(cluster, make_job(40, NEW))
        assert first.done.session is not None
        assert first.done.session.saved
        use = SessionUse(NEW.tenant, NEW.session_id, 1)
        async with cluster.replicas.lease(use) as replica:
            assert replica.is_hot
            assert replica.facts == FACTS
            assert replica.backlog.pending == ()
        async with cluster.replicas.lease(replace(use, version=2)) as replica:
            assert not replica.is_hot
        assert {data["session_id"] for data in cluster.directory.metadata} == {NEW.session_id}
        assert {data["application"] for data in cluster.directory.metadata} == {"big"}


@asynchronous
async def test_the_tokenizer_comes_from_a_replica(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\x00")
    (tmp_path / "model.safetensors").write_bytes(b"not for gateways")
    async with running(model_folder=tmp_path) as cluster:
        files = await cluster.replicas.tokenizer_files()
        assert files == {"tokenizer.json": b"{}", "chat_template.jinja": b"\xff\x00"}
        await until(lambda: cluster.directory.held == 0)


@asynchronous
async def test_errors_keep_their_class_and_words() -> None:
    async with running() as cluster:
        with pytest.raises(InvalidRequest, match=r"token_ids is 99: must be in 0\.\.63"):
            await run_remote(cluster, make_job([1, 99]))
        await cluster.store.acquire(NEW.tenant, NEW.session_id, "somebody")
        with pytest.raises(SessionBusy, match="in use by another request"):
            await run_remote(cluster, make_job(5, NEW))


@asynchronous
async def test_a_deadline_holds_at_the_other_end() -> None:
    async with running(max_step_tokens=16) as cluster:
        [node] = cluster.directory.nodes
        node.rig.runner.before_step = lambda: time.sleep(0.5)
        started_s = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await run_remote(cluster, make_job(1000, deadline_s=started_s + 0.4))
        assert time.monotonic() - started_s < 20, "all of it would take half a minute"
        await until(lambda: not node.rig.engine.scheduler.requests)
        assert await node.rig.used_blocks() == 0


@asynchronous
async def test_a_client_that_goes_away_stops_the_work_within_a_chunk() -> None:
    async with running(max_step_tokens=16) as cluster:
        [node] = cluster.directory.nodes
        steps = 0

        def count() -> None:
            nonlocal steps
            steps += 1
            time.sleep(0.02)

        node.rig.runner.before_step = count
        async with (
            cluster.replicas.lease(None) as replica,
            contextlib.aclosing(replica.generate(make_job(1500))) as events,
        ):
            async for event in events:
                if isinstance(event, PrefillProgress) and event.num_computed_tokens >= 48:
                    break
        await until(lambda: not node.rig.engine.scheduler.requests)
        seen = steps
        await asyncio.sleep(0.2)
        assert steps == seen < 80, "all of it would take 94"
        assert await node.rig.used_blocks() == 0


@asynchronous
async def test_a_slow_reader_stops_its_own_turn_and_no_other() -> None:
    async with running() as cluster:
        [node] = cluster.directory.nodes
        async with cluster.replicas.lease(None) as replica:
            slow = replica.generate(make_job(10, max_tokens=1000, recipe="sliding"))
            async with contextlib.aclosing(slow):
                await anext(slow)
                await until(lambda: any(request.paused for request in node.rig.engine.scheduler.requests))
                [request] = node.rig.engine.scheduler.requests
                other = await run_remote(cluster, make_job(20))
                assert len(other.tokens) == 6
                await asyncio.sleep(0.3)
                assert request.num_generated_tokens < 800, "it runs ahead of its reader by hundreds of tokens at most"
                rest = [event async for event in slow]
        assert sum(isinstance(event, TokenOutput) for event in rest) == 1000
        assert isinstance(rest[-1], Done)


@pytest.mark.parametrize("after", [0, 1, 3, 6])
@asynchronous
async def test_a_replica_that_dies_is_replaced_in_mid_stream(after: int) -> None:
    async with running(num_nodes=2) as cluster:
        first, second = cluster.directory.nodes
        job = make_job(40, NEW, max_tokens=8)
        expected = (await run_local(second.replica, replace(job, session=None, restore=None))).tokens

        async def replan(cut_off: Job, replica: LeasedReplica) -> Job:
            return cut_off

        async with cluster.replicas.lease(job.session) as leased:
            running_turn = run_turn(cluster.replicas, leased, job, replan, cluster.store, LetterDecoder())
            tokens: list[int] = []
            if after == 0:
                first.rig.runner.before_step = lambda: time.sleep(0.2)
                asyncio.get_running_loop().call_later(0.05, lambda: asyncio.ensure_future(kill(cluster, first)))
            async for event in running_turn:
                if isinstance(event, TokenOutput):
                    tokens.append(event.token_id)
                    if len(tokens) == after:
                        await kill(cluster, first)
        assert tokens == expected
        assert isinstance(event, Done)
        assert event.session is not None
        assert event.session.saved
        manifest = cluster.store.manifests[NEW.tenant, NEW.session_id]
        assert list(manifest.token_ids[40:]) == expected
        await until_peers_are(cluster, [second])


@asynchronous
async def test_a_connection_is_kept_until_it_breaks() -> None:
    async with running() as cluster:
        [node] = cluster.directory.nodes
        for _ in range(2):
            await run_remote(cluster, make_job(5))
            assert cluster.replicas.peers == {node.server.address}
        await node.server.stop(0)
        await until_peers_are(cluster, [])


@asynchronous
async def test_a_replica_that_ends_unleased_is_forgotten() -> None:
    """As one that is not needed any more: nobody leases it again, and other leases see that it is gone."""
    async with running(num_nodes=2) as cluster:
        first, second = cluster.directory.nodes
        await run_remote(cluster, make_job(5))
        await kill(cluster, first)
        await run_remote(cluster, make_job(5))
        await until_peers_are(cluster, [second])


async def until_peers_are(cluster: Cluster, nodes: list[Node]) -> None:
    """Leases that are not used, until it is so: connections take a moment to see that they are broken."""
    async with asyncio.timeout(120):
        while cluster.replicas.peers != {node.server.address for node in nodes}:
            async with cluster.replicas.lease(None):
                await asyncio.sleep(0.01)


async def kill(cluster: Cluster, node: Node) -> None:
    """As abrupt as it gets within a process: the server ends all calls, the directory does not know it any more."""
    if node in cluster.directory.nodes:
        cluster.directory.nodes.remove(node)
        await node.server.stop(0)


@asynchronous
async def test_without_replicas_there_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_replicas, "LEASE_TIMEOUT_S", 0.5)
    monkeypatch.setattr(remote_replicas, "CONNECT_TIMEOUT_S", 0.3)
    async with running() as cluster:
        [node] = cluster.directory.nodes
        await node.server.stop(0)
        with pytest.raises(ReplicaLost, match=r"replica replica at 127\.0\.0\.1:\d+ cannot be reached"):
            await run_remote(cluster, make_job(5))
        cluster.directory.nodes.clear()
        with pytest.raises(ReplicaLost, match=r"no replica was to be had within 0 s: UNAVAILABLE: no replicas"):
            await run_remote(cluster, make_job(5))


def ends_of_a_wire(folder: Path) -> tuple[CertificateFolder, CertificateFolder]:
    """A replica's certificate and a gateway's, of one authority."""
    replica = issued_in(folder / "replica", "swaa-replica")
    gateway = CertificateFolder(folder / "gateway", replica.authority)
    gateway.folder.mkdir()
    gateway.issue("swaa-gateway")
    return replica, gateway


def source_of(made: CertificateFolder) -> CertificateSource:
    return CertificateSource(made.files(asks_clients=True))


@asynchronous
async def test_a_turn_over_tls_and_the_next_one_with_new_certificates(tmp_path: Path) -> None:
    replica, gateway = ends_of_a_wire(tmp_path)
    ends = source_of(replica), source_of(gateway)
    async with running(certificates=ends[0], gateways=ends[1]) as cluster:
        before = await run_remote(cluster, make_job(40))
        for made, source in ((replica, ends[0]), (gateway, ends[1])):
            made.issue("swaa-replica")
            await source.refresh()
            assert source.error == ""
        assert (await run_remote(cluster, make_job(40))).tokens == before.tokens
        assert len(cluster.replicas.peers) == 1


@asynchronous
async def test_who_is_no_gateway_or_no_replica_gets_and_gives_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_replicas, "CONNECT_TIMEOUT_S", 0.5)
    replica, gateway = ends_of_a_wire(tmp_path)
    stranger = issued_in(tmp_path / "stranger", "swaa-replica")
    misnamed = CertificateFolder(tmp_path / "misnamed", replica.authority)
    misnamed.folder.mkdir()
    misnamed.issue("10.0.0.9")
    pairs = ((replica, None), (replica, stranger), (stranger, gateway), (misnamed, gateway), (None, gateway))
    for served, asking in pairs:
        certificates, gateways = (None if made is None else source_of(made) for made in (served, asking))
        async with running(certificates=certificates, gateways=gateways) as cluster:
            with pytest.raises(ReplicaLost):
                await run_remote(cluster, make_job(40))
