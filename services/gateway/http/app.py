"""The HTTP application: all endpoints, and one answer to every error. No CORS: pages of other origins get nothing."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from services.gateway.answers import Answers
from services.gateway.auth.authenticator import Authenticator
from services.gateway.http.authentication import Authentication, operators_only
from services.gateway.http.console_pages import ConsolePages
from services.gateway.http.description import Description
from services.gateway.http.errors import answer_error, answer_http_exception
from services.gateway.http.openai_api import OpenAiApi
from services.gateway.http.probes import Health, Probes
from services.gateway.http.running import Running
from services.gateway.http.service_api import ServiceApi
from services.gateway.receiving import Intake
from services.gateway.session_admin import SessionAdmin
from services.replica.facts import ModelFacts
from services.telemetry.page import MetricsPage
from swaa_runtime.errors import SwaaError


def build_app(
    model_name: str,
    facts: ModelFacts,
    answers: Answers,
    sessions: SessionAdmin,
    authenticator: Authenticator,
    health: Health,
    running: Running,
    intake: Intake,
    metrics: MetricsPage | None = None,
) -> Starlette:
    """The application of one gateway.

    Args:
        model_name: as it is told to clients.
        facts: of the replicas' model, as they were when the service started.
        health: what probes are told; the caller writes to it.
        running: where requests run, so that the caller can end them.
        authenticator: knows who asks; paths that are open to everybody are `authentication`'s.
        intake: counts what is on its way in.
        metrics: what Prometheus and operators read; None: there is no such page.
    """
    openai = OpenAiApi(model_name, facts, answers, running, intake)
    service = ServiceApi(model_name, facts, answers, sessions, intake)
    pages = []
    if metrics is not None:
        page = metrics.route()
        pages.append(Route(page.path, operators_only(page.endpoint), methods=["GET"]))
    described = [*openai.routes(), *service.routes(), *Probes(health).routes(), *pages]
    return Starlette(
        routes=[*described, Description(described).route(), *ConsolePages().routes()],
        middleware=[Middleware(Authentication, authenticator=authenticator)],
        exception_handlers={
            SwaaError: answer_error,
            HTTPException: answer_http_exception,
            Exception: answer_error,
        },
    )


def build_operators_app(health: Health, metrics: MetricsPage | None = None) -> Starlette:
    """What operators and their probes ask, and nothing of any client: for a port that clients cannot reach."""
    return Starlette(routes=[*Probes(health).routes(), *([] if metrics is None else [metrics.route()])])
