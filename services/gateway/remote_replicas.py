"""Replicas in a cluster: Ray Serve picks one, tokens then come straight from it (see proto/swaa/v1/replica.proto)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import grpc

from services.backlog import Backlog
from services.certificate_source import CertificateSource, channel_credentials
from services.errors import ReplicaLost
from services.gateway.replicas import LeasedReplica, TurnPromise
from services.pb.swaa.v1 import replica_pb2 as pb
from services.pb.swaa.v1 import replica_pb2_grpc as pb_grpc
from services.replica.facts import ModelFacts
from services.replica.job import Event, Job, SessionUse
from services.replica.promises import Promises
from services.replica.wire import REPLICA_NAME, RUN_OPTIONS, TOKENIZER_FILES, event_from, facts_from, run_request
from services.replica.wire_backlog import backlog_from
from services.tls import Certificate
from services.wire_errors import error_from
from swaa_runtime.errors import DeadlineExceeded

logger = logging.getLogger(__name__)

LEASE_TIMEOUT_S = 60.0
"""How long to wait for a replica that has room: longer than one takes to be replaced."""

CONNECT_TIMEOUT_S = 5.0
"""How long to wait for the connection to a replica that was leased."""

RETRY_S = 0.2
HEALTHZ = "/ray.serve.RayServeAPIService/Healthz"
PING_TIMEOUT_S = 5.0

READ_OPTIONS = (
    *RUN_OPTIONS,
    # How far a replica may run ahead of a slow reader: some hundred tokens. HTTP/2's usual window holds thousands.
    ("grpc.http2.lookahead_bytes", 4096),
    ("grpc.http2.bdp_probe", 0),
)

TLS_OPTIONS = (*READ_OPTIONS, ("grpc.ssl_target_name_override", REPLICA_NAME))
"""Replicas come and go at addresses that no certificate knows of; the name of what they are stays."""


@dataclass(frozen=True, slots=True)
class _Remote:
    """One replica, as it was when it was leased."""

    facts: ModelFacts
    replica_id: str
    address: str
    told: Backlog
    told_s: float
    is_hot: bool
    channel: grpc.aio.Channel
    turn_promise: TurnPromise

    @property
    def backlog(self) -> Backlog:
        """See `LeasedReplica`."""
        return self.turn_promise.promises.added_to(self.told.aged((time.monotonic() - self.told_s) * 1e3))

    def promise(self, job: Job) -> None:
        """See `LeasedReplica`."""
        self.turn_promise.make(job)

    def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        """See `LeasedReplica`."""
        return self.turn_promise.kept_by(self._run(job))

    async def _run(self, job: Job) -> AsyncGenerator[Event, None]:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self.channel.channel_ready()
        except TimeoutError:
            raise ReplicaLost(f"replica {self.replica_id} at {self.address} cannot be reached") from None
        timeout_s = None if job.deadline_s is None else job.deadline_s - time.monotonic()
        stub: Any = pb_grpc.ReplicaStub(self.channel)  # type: ignore[no-untyped-call]
        call = stub.Run(run_request(job), timeout=timeout_s, metadata=job.trace_headers)
        try:
            async for message in call:
                yield event_from(message, job.request_id)
        except grpc.aio.AioRpcError as exc:
            if exc.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise DeadlineExceeded("the request's deadline passed") from exc
            raise error_from(_metadata(exc), f"{self.replica_id}: {exc.code().name} {exc.details()}") from exc
        finally:
            call.cancel()  # at the end: nothing; else it stops the work there


@dataclass(slots=True)
class _Peer:
    """What all turns on one replica share. Kept while somebody leases it or a connection lives."""

    promises: Promises = field(default_factory=Promises)
    channels: dict[Certificate | None, grpc.aio.Channel] = field(default_factory=dict)
    num_leases: int = 0


class RemoteReplicas:
    """Replicas behind Ray Serve's gRPC proxy.

    Args:
        proxy: host:port of Serve's gRPC proxy.
        application: name of the Serve application, if there are several.
        certificates: what gateways and replicas show each other; None: replicas have no TLS. The proxy has none.
    """

    def __init__(self, proxy: str, application: str = "", certificates: CertificateSource | None = None) -> None:
        self._proxy = grpc.aio.insecure_channel(proxy, options=RUN_OPTIONS)
        self._application = application
        self._certificates = certificates
        self._peers: dict[str, _Peer] = {}

    @property
    def peers(self) -> frozenset[str]:
        """Addresses of replicas that are leased from here or have a connection."""
        return frozenset(self._peers)

    async def close(self) -> None:
        """Close all connections."""
        channels = [channel for peer in self._peers.values() for channel in peer.channels.values()]
        self._peers.clear()
        await asyncio.gather(*(channel.close(None) for channel in (self._proxy, *channels)))

    async def ping(self) -> None:
        """Return if Serve's proxy is there and well. Raises ReplicaLost."""
        # Serve's own method. Its messages are Ray's, and say no more than that they come.
        healthz: Any = self._proxy.unary_unary(HEALTHZ, None, None)
        try:
            await healthz(b"", timeout=PING_TIMEOUT_S)
        except grpc.aio.AioRpcError as exc:
            raise ReplicaLost(f"Serve's proxy: {exc.code().name}: {exc.details()}") from exc

    async def tokenizer_files(self) -> dict[str, bytes]:
        """The tokenizer of the replicas' model: file names and contents. Raises ReplicaLost."""
        async with self.lease(None) as replica:
            assert isinstance(replica, _Remote)  # noqa: S101 - we have just made it
            stub: Any = pb_grpc.ReplicaStub(replica.channel)  # type: ignore[no-untyped-call]
            try:
                files = {file.name: file.data async for file in stub.Tokenizer(pb.TokenizerRequest())}
            except grpc.aio.AioRpcError as exc:
                raise error_from(_metadata(exc), f"{replica.replica_id}: {exc.code().name} {exc.details()}") from exc
        return {name: data for name, data in files.items() if name in TOKENIZER_FILES}

    @contextlib.asynccontextmanager
    async def lease(self, session: SessionUse | None) -> AsyncIterator[LeasedReplica]:
        """See `Replicas`. Waits for up to LEASE_TIMEOUT_S while there is none."""
        call, grant = await self._granted(session)
        address = grant.address
        peer = self._peers.setdefault(address, _Peer())
        peer.num_leases += 1
        try:
            with TurnPromise(peer.promises) as turn_promise:
                yield _Remote(
                    facts=facts_from(grant.model),
                    replica_id=grant.replica_id,
                    address=address,
                    told=backlog_from(grant.backlog),
                    told_s=time.monotonic(),
                    is_hot=grant.is_hot,
                    channel=self._channel(peer, address),
                    turn_promise=turn_promise,
                )
        finally:
            call.cancel()
            peer.num_leases -= 1
            await self._hang_up()

    async def _granted(self, session: SessionUse | None) -> tuple[Any, pb.LeaseGrant]:
        until_s = time.monotonic() + LEASE_TIMEOUT_S
        while True:
            try:
                async with asyncio.timeout(until_s - time.monotonic()):
                    return await self._ask(session)
            except grpc.aio.AioRpcError as exc:
                reason = f"{exc.code().name}: {exc.details()}"
            except (ReplicaLost, TimeoutError) as exc:
                reason = str(exc) or "no answer"
            if time.monotonic() + RETRY_S > until_s:
                raise ReplicaLost(f"no replica was to be had within {LEASE_TIMEOUT_S:.0f} s: {reason}")
            logger.info("no replica to be had yet: %s", reason)
            await asyncio.sleep(RETRY_S)

    async def _ask(self, session: SessionUse | None) -> tuple[Any, pb.LeaseGrant]:
        stub: Any = pb_grpc.ReplicaDirectoryStub(self._proxy)  # type: ignore[no-untyped-call]
        request, metadata = pb.LeaseRequest(), []
        if self._application:
            metadata.append(("application", self._application))
        if session is not None:
            request = pb.LeaseRequest(tenant=session.tenant, session_id=session.session_id, version=session.version)
            metadata.append(("session_id", session.session_id))
        call = stub.Lease(request, metadata=tuple(metadata))
        try:
            grant = await call.read()
        except BaseException:
            call.cancel()
            raise
        if not isinstance(grant, pb.LeaseGrant):  # the end of the stream
            raise ReplicaLost("a replica ended its lease before it gave one")
        return call, grant

    def _channel(self, peer: _Peer, address: str) -> grpc.aio.Channel:
        """One connection to each replica, kept: turns share it. A new certificate means a new connection."""
        certificate = self._certificate
        if certificate not in peer.channels:
            if certificate is None:
                channel = grpc.aio.insecure_channel(address, options=READ_OPTIONS)
            else:
                channel = grpc.aio.secure_channel(address, channel_credentials(certificate), options=TLS_OPTIONS)
            peer.channels[certificate] = channel
        return peer.channels[certificate]

    async def _hang_up(self) -> None:
        """Forget replicas that nobody leases and that are not connected any more: they ended, now or long since."""
        closing = []
        for address, peer in list(self._peers.items()):
            if peer.num_leases:
                continue
            for certificate, channel in list(peer.channels.items()):
                if certificate != self._certificate or channel.get_state() is not grpc.ChannelConnectivity.READY:
                    closing.append(peer.channels.pop(certificate))
            if not peer.channels:
                del self._peers[address]
        await asyncio.gather(*(channel.close(None) for channel in closing))

    @property
    def _certificate(self) -> Certificate | None:
        return None if self._certificates is None else self._certificates.current


def _metadata(error: grpc.aio.AioRpcError) -> list[tuple[str, Any]]:
    return list(cast("Iterable[tuple[str, Any]]", error.trailing_metadata() or ()))
