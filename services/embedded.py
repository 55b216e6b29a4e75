"""The embedded service: gateway, one replica and a private Redis in one process tree. The default way to run.

Started from the inside out (store, model, engine, gateway), stopped from the outside in.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from services.config import ServeConfig
from services.gateway.answers import Answers
from services.gateway.catalog_file import ServedModel, catalog_path
from services.gateway.catalog_source import CatalogSource
from services.gateway.identity import TENANT
from services.gateway.prompt import PromptEncoder
from services.gateway.replicas import LocalReplicas
from services.gateway.server import GatewayServer
from services.gateway.service import LongContextService
from services.gateway.turns import TurnPlanner
from services.replica.calibrate import Progress
from services.replica.engine_loop import EngineLoop
from services.replica.parts import learning_cost, model_facts, running_parts
from swaa_runtime.errors import EngineFailed

HEALTH_INTERVAL_S = 1.0


@contextlib.asynccontextmanager
async def running_service(
    config: ServeConfig, progress: Progress = lambda done, total: None
) -> AsyncIterator[GatewayServer]:
    """The whole service, serving; drained and stopped on leaving. `progress` follows the first start's calibration."""
    async with running_parts(config) as parts:
        cost = await learning_cost(config, parts, progress)
        facts = model_facts(parts, cost.profile)
        model = ServedModel(facts.shape.num_layers, facts.fingerprint)
        catalogs = CatalogSource(catalog_path(config.catalog, config.model), model)
        encoder = PromptEncoder.from_folder(parts.model_folder, facts.shape.vocab_size, facts.max_session_tokens)
        policy = config.session_policy
        turns = TurnPlanner(catalogs, encoder, parts.store, policy, facts.max_session_tokens, TENANT)
        answers = Answers(
            turns, LocalReplicas(parts.replica, facts, lambda: cost.profile), parts.store, facts.eos_token_ids
        )
        service = LongContextService(config.model, facts, answers, parts.store, policy)
        server = GatewayServer(service, config.listen)
        await server.start()
        watching = [asyncio.create_task(task) for task in (_watch(parts.engine, server), catalogs.watch())]
        try:
            yield server
        finally:
            for task in watching:
                task.cancel()
            await server.stop(config.drain_s)


async def _watch(engine: EngineLoop, server: GatewayServer) -> None:
    """Keep the health service honest: an engine that died or is stuck does not serve."""
    while True:
        try:
            engine.check_alive()
        except EngineFailed:
            await server.set_serving(False, alive=False)
        else:
            await server.set_serving(True)
        await asyncio.sleep(HEALTH_INTERVAL_S)
