"""Answers that are made up, and an application around them that is called without a socket."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from types import SimpleNamespace
from typing import Any

import httpx
from starlette.applications import Starlette

from services.gateway.answers import Accepted, Answered, AnswerEvent, Timings
from services.gateway.auth.authenticator import Authenticator, Everybody
from services.gateway.catalog_source import FixedCatalog
from services.gateway.http.app import build_app
from services.gateway.http.probes import Health
from services.gateway.http.running import Running
from services.gateway.identity import ANONYMOUS
from services.gateway.receiving import Intake
from services.gateway.session_admin import SessionAdmin
from services.gateway.turns import Asked, Planned, Understood
from services.replica.job import Done, Job, SessionUse
from services.sessions.policy import SessionPolicy
from swaa_runtime.outputs import PrefillProgress, TokenOutput
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import FinishReason, SamplingParams, TokenLogprob
from tests.services.gateway.builders import make_catalog, make_objective, make_plan, make_work
from tests.services.sessions.fake_store import FakeSessionStore

MODEL = "toy"
EVERYBODY = Everybody()


class Letters:
    """Bytes of tokens that are bytes."""

    def of(self, token_id: int) -> bytes:
        return bytes([token_id])


def accepted(session_id: str = "") -> Accepted:
    session = SessionUse("default", session_id, 0) if session_id else None
    prompt: Any = None
    asked = Asked(ANONYMOUS, make_catalog(), make_objective(), None, arrival_s=0.0)
    request = Understood(prompt, 16, asked, session, (1, 2, 3))
    job = Job("r1", (1, 2, 3), "tail", Recipe(), SamplingParams(), session=session)
    return Accepted(job, Planned(request, make_work(3), make_plan()))


def token(letter: str | bytes, text: str | None = None, logprob: TokenLogprob | None = None) -> TokenOutput:
    data = letter.encode() if isinstance(letter, str) else letter
    return TokenOutput("r1", data[0], data.decode("utf-8", "ignore") if text is None else text, logprob)


def progress(done: int = 3) -> PrefillProgress:
    return PrefillProgress("r1", done, 3, 0)


def answered(num_tokens: int, text: str = "", restored: int = 0) -> Answered:
    first = accepted()
    timings = Timings(1.0, 0.0, 5.0, 1.0, 0.0, 9.0)
    done = Done(FinishReason.LENGTH, text, num_tokens, restored, 1.0, 2.0, 0.0, 0.0, 10, 20, 30, None)
    return Answered(done, first.job, first.planned, timings, ())


class FakeAnswers:
    """Answers with what it was given; an exception in it is raised."""

    def __init__(self, events: Sequence[AnswerEvent | Exception] = ()) -> None:
        self.events = events
        self.asked: list[tuple[Any, Any, Any]] = []
        self.given = 0
        self.closed = 0
        self.turns = SimpleNamespace(
            encoder=SimpleNamespace(token_bytes=Letters), catalogs=FixedCatalog(make_catalog())
        )

    async def answer(
        self, identity: Any, prompt: Any, params: Any, headers: Any, deadline_s: float | None = None
    ) -> AsyncGenerator[AnswerEvent, None]:
        self.asked.append((prompt, params, headers))
        try:
            for event in self.events:
                if isinstance(event, Exception):
                    raise event
                self.given += 1
                yield event
        finally:
            self.closed += 1


def make_app(
    answers: Any,
    running: Running | None = None,
    health: Health | None = None,
    authenticator: Authenticator = EVERYBODY,
) -> Starlette:
    facts: Any = SimpleNamespace(fingerprint="toy-bf16", max_session_tokens=1000)
    sessions = SessionAdmin(FakeSessionStore(), SessionPolicy(3600.0), FixedCatalog(make_catalog()))
    parts = (authenticator, health or Health(), running or Running(), Intake(1 << 30))
    return build_app(MODEL, facts, answers, sessions, *parts)


def client_of(app: Starlette) -> httpx.AsyncClient:
    """Calls the application; what it does not catch comes out as a status of 500."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://toy")
