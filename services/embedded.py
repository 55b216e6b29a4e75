"""The embedded service: gateway, one replica and a private Redis in one process tree. The default way to run.

Started from the inside out (store, model, engine, gateway), stopped from the outside in.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from services.certificate_source import watched_certificates
from services.config import ServeConfig
from services.exposure import door_files
from services.gateway.assembly import open_front_doors
from services.gateway.front_doors import FrontDoors
from services.gateway.prompt import PromptEncoder
from services.gateway.replicas import LocalReplicas
from services.replica.calibrate import Progress
from services.replica.engine_loop import EngineLoop
from services.replica.parts import learning_cost, model_facts, running_parts
from services.telemetry.certificate_metrics import CertificateMetrics
from services.telemetry.page import MetricsPage
from services.telemetry.process import running_telemetry
from swaa_runtime.errors import EngineFailed

HEALTH_INTERVAL_S = 1.0


@contextlib.asynccontextmanager
async def running_service(
    config: ServeConfig, progress: Progress = lambda done, total: None
) -> AsyncIterator[FrontDoors]:
    """The whole service, serving; drained and stopped on leaving. `progress` follows the first start's calibration."""
    async with (
        watched_certificates(door_files(config)) as certificates,  # before what takes time
        running_telemetry(config.otlp_endpoint, "swaa") as telemetry,
        running_parts(config, telemetry=telemetry) as parts,
    ):
        cost = await learning_cost(config, parts, progress)
        facts = model_facts(parts, cost.profile)
        encoder = PromptEncoder.from_folder(parts.model_folder, facts.shape.vocab_size, facts.max_session_tokens)
        replicas = LocalReplicas(parts.replica, facts, lambda: cost.profile)
        CertificateMetrics(telemetry.registry, {"clients": certificates})
        metrics = MetricsPage(telemetry.registry, [parts.engine_metrics.refresh])
        opening = open_front_doors(
            config, facts, encoder, replicas, parts.store, parts.quotas, telemetry, metrics, certificates
        )
        async with opening as server:
            watching = asyncio.create_task(_watch(parts.engine, server))
            try:
                yield server
            finally:
                watching.cancel()


async def _watch(engine: EngineLoop, server: FrontDoors) -> None:
    """Keep the health service honest: an engine that died or is stuck does not serve."""
    while True:
        try:
            engine.check_alive()
        except EngineFailed:
            await server.set_serving(False, alive=False)
        else:
            await server.set_serving(True)
        await asyncio.sleep(HEALTH_INTERVAL_S)
