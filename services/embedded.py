"""The embedded service: gateway, one replica and a private Redis in one process tree. The default way to run.

Started from the inside out (store, model, engine, gateway), stopped from the outside in.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from services.config import ServeConfig
from services.gateway.answer_telemetry import observer_of
from services.gateway.answers import Answers
from services.gateway.catalog_file import ServedModel, catalog_path
from services.gateway.catalog_source import CatalogSource
from services.gateway.front_doors import FrontDoors
from services.gateway.identity import TENANT
from services.gateway.prompt import PromptEncoder
from services.gateway.replicas import LocalReplicas
from services.gateway.turns import TurnPlanner
from services.replica.calibrate import Progress
from services.replica.engine_loop import EngineLoop
from services.replica.parts import learning_cost, model_facts, running_parts
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
        running_telemetry(config.otlp_endpoint, "swaa") as telemetry,
        running_parts(config, telemetry=telemetry) as parts,
    ):
        cost = await learning_cost(config, parts, progress)
        facts = model_facts(parts, cost.profile)
        model = ServedModel(facts.shape.num_layers, facts.fingerprint, facts.adapter_ids)
        catalogs = CatalogSource(catalog_path(config.catalog, config.model), model)
        encoder = PromptEncoder.from_folder(parts.model_folder, facts.shape.vocab_size, facts.max_session_tokens)
        turns = TurnPlanner(catalogs, encoder, parts.store, config.session_policy, facts.max_session_tokens, TENANT)
        replicas = LocalReplicas(parts.replica, facts, lambda: cost.profile)
        observer = observer_of(telemetry, catalogs)
        answers = Answers(turns, replicas, parts.store, facts.eos_token_ids, observer)
        metrics = MetricsPage(telemetry.registry, [parts.engine_metrics.refresh])
        server = FrontDoors(config, facts, answers, parts.store, metrics)
        await server.start()
        watching = [asyncio.create_task(task) for task in (_watch(parts.engine, server), catalogs.watch())]
        try:
            yield server
        finally:
            for task in watching:
                task.cancel()
            await server.stop(config.drain_s)


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
