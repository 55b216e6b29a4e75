"""A gateway as a process of its own: stateless, one of many, without Ray or torch in it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from services.certificate_source import watched_certificates
from services.config import ServeConfig
from services.errors import ReplicaLost
from services.exposure import door_files, replica_files
from services.gateway.assembly import open_front_doors
from services.gateway.front_doors import FrontDoors
from services.gateway.prompt import PromptEncoder
from services.gateway.remote_replicas import RemoteReplicas
from services.replica.facts import ModelFacts
from services.sessions.redis_store import RedisSessionStore
from services.telemetry.certificate_metrics import CertificateMetrics
from services.telemetry.metrics import StoreMetrics
from services.telemetry.observed_store import ObservedStore
from services.telemetry.page import MetricsPage
from services.telemetry.process import running_telemetry
from swaa_runtime.errors import InvalidRequest

logger = logging.getLogger(__name__)

HEALTH_INTERVAL_S = 5.0


@contextlib.asynccontextmanager
async def running_gateway(config: ServeConfig) -> AsyncIterator[FrontDoors]:
    """A gateway in front of the replicas behind `config.replicas`, serving; drained and stopped on leaving.

    It waits until there is a replica, to learn what model it serves and to get its tokenizer.

    Raises:
        InvalidRequest: for a setting that is missing, a certificate that cannot be used, or a door that is too open.
        StoreUnavailable: if Redis does not answer; ReplicaLost if no replica is to be had in time.
    """
    proxy, redis_url = _given("replicas", config.replicas), _given("redis_url", config.redis_url)
    async with contextlib.AsyncExitStack() as stack:
        certificates = await stack.enter_async_context(watched_certificates(door_files(config)))
        replica_certificates = await stack.enter_async_context(watched_certificates(replica_files(config)))
        telemetry = await stack.enter_async_context(running_telemetry(config.otlp_endpoint, "swaa-gateway"))
        redis = RedisSessionStore.from_url(
            redis_url,
            config.session_ttl_s,
            timeout_s=config.redis_timeout_s,
            quota_bytes=config.session_quota_bytes,
        )
        stack.push_async_callback(redis.close)
        await redis.ping()
        store = ObservedStore(redis, StoreMetrics(telemetry.registry))
        replicas = RemoteReplicas(proxy, config.application, replica_certificates)
        stack.push_async_callback(replicas.close)
        async with replicas.lease(None) as replica:
            facts = replica.facts
        encoder = await _encoder(replicas, facts)
        CertificateMetrics(telemetry.registry, {"clients": certificates, "replicas": replica_certificates})
        metrics = MetricsPage(telemetry.registry)
        opening = open_front_doors(
            config, facts, encoder, replicas, store, redis.quotas(), telemetry, metrics, certificates
        )
        server = await stack.enter_async_context(opening)
        watching = asyncio.create_task(_watch(replicas, server))
        stack.callback(watching.cancel)
        yield server


async def _encoder(replicas: RemoteReplicas, facts: ModelFacts) -> PromptEncoder:
    """The tokenizer comes from a replica: a gateway has no model folder, and cannot have another model's by mistake."""
    files = await replicas.tokenizer_files()
    with tempfile.TemporaryDirectory(prefix="swaa-tokenizer-") as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        return PromptEncoder.from_folder(Path(folder), facts.shape.vocab_size, facts.max_session_tokens)


async def _watch(replicas: RemoteReplicas, server: FrontDoors) -> None:
    """Be ready as long as replicas can be asked for: other gateways may have more luck than one that is cut off.

    That all of them are full is no reason: they are for the others, too.
    """
    while True:
        await asyncio.sleep(HEALTH_INTERVAL_S)
        try:
            await replicas.ping()
        except ReplicaLost as exc:
            logger.warning("not ready: %s", exc)
            await server.set_serving(False)
        else:
            await server.set_serving(True)


def _given(name: str, value: str | None) -> str:
    if value is None:
        raise InvalidRequest(name, value, "a gateway needs it")
    return value
