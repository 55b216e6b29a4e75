"""A gateway from its parts: catalogue, planner, telemetry, who may ask, and front doors, wherever its replicas are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from services.certificate_source import CertificateSource
from services.config import ServeConfig
from services.gateway.answer_telemetry import observer_of
from services.gateway.answers import Answers
from services.gateway.auth.authenticator import authenticator_of
from services.gateway.auth.file_metrics import FileMetrics
from services.gateway.catalog_file import ServedModel, catalog_path
from services.gateway.catalog_source import CatalogSource
from services.gateway.front_doors import FrontDoors
from services.gateway.prompt import PromptEncoder
from services.gateway.quotas import QuotaCounter, Quotas
from services.gateway.replicas import Replicas
from services.gateway.session_admin import SessionAdmin
from services.gateway.turns import TurnPlanner
from services.replica.facts import ModelFacts
from services.sessions.store import Store
from services.telemetry.metrics import AuthenticationMetrics, QuotaMetrics
from services.telemetry.page import MetricsPage
from services.telemetry.process import Telemetry


@contextlib.asynccontextmanager
async def open_front_doors(
    config: ServeConfig,
    facts: ModelFacts,
    encoder: PromptEncoder,
    replicas: Replicas,
    store: Store,
    counter: QuotaCounter,
    telemetry: Telemetry,
    metrics: MetricsPage,
    certificates: CertificateSource | None,
) -> AsyncIterator[FrontDoors]:
    """A gateway that serves, its catalogue and credentials kept up to date; drained and stopped on leaving.

    Raises:
        InvalidRequest, InvalidRecipe, ModelNotSupported: for a file or an address that cannot be used.
    """
    policy, registry = config.session_policy, telemetry.registry
    model = ServedModel(facts.shape.num_layers, facts.fingerprint, facts.adapter_ids)
    catalogs = CatalogSource(catalog_path(config.catalog, config.model), model)
    authenticator = authenticator_of(config, AuthenticationMetrics(registry))
    FileMetrics(registry, authenticator)
    turns = TurnPlanner(catalogs, encoder, store, policy, facts.max_session_tokens)
    quotas = Quotas(counter, QuotaMetrics(registry))
    answers = Answers(turns, replicas, store, quotas, facts.eos_token_ids, observer_of(telemetry, catalogs))
    sessions = SessionAdmin(store, policy, catalogs)
    server = FrontDoors(config, facts, answers, store, sessions, authenticator, metrics, certificates)
    await server.start()
    watching = asyncio.gather(catalogs.watch(), authenticator.watch())
    try:
        yield server
    finally:
        watching.cancel()
        await server.stop(config.drain_s)
        await asyncio.gather(watching, return_exceptions=True)  # else asyncio logs the cancellation as an error
