"""OpenAI's API: chats, completions, models."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from services.gateway.answers import Answers
from services.gateway.http.authentication import identity_of
from services.gateway.http.body import read_json
from services.gateway.http.chat import ChatFields, ChatWording
from services.gateway.http.completions import CompletionFields, CompletionWording
from services.gateway.http.models import check_model, model_object
from services.gateway.http.running import Running
from services.gateway.http.schema import TurnFields, parse
from services.gateway.http.turn import Served, TurnResponse, Wording
from services.gateway.limits import MAX_UPLOAD_BYTES
from services.gateway.prompt import PromptInput
from services.gateway.receiving import Intake
from services.replica.facts import ModelFacts
from swaa_runtime.request import SamplingParams


def request_headers(request: Request) -> list[tuple[str, str]]:
    """A request's headers, as gRPC's metadata has them: names in lower case, repeated ones repeated."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw]


class OpenAiApi:
    """Endpoints of one served model."""

    def __init__(self, model_name: str, facts: ModelFacts, answers: Answers, running: Running, intake: Intake) -> None:
        self._intake = intake
        self._served = Served(model_name, facts.fingerprint)
        self._model = model_object(self._served, int(time.time()), facts.max_session_tokens)
        self._answers = answers
        self._running = running
        self._token_bytes = answers.turns.encoder.token_bytes()

    def routes(self) -> list[Route]:
        """Paths below /v1."""
        return [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.one_model, methods=["GET"]),
        ]

    async def chat(self, request: Request) -> TurnResponse:
        """A turn of chat messages."""
        fields = parse(await read_json(request, self._intake), ChatFields)
        return self._turn(request, fields, fields.prompt(), fields.params(), ChatWording(self._token_bytes))

    async def completions(self, request: Request) -> TurnResponse:
        """A turn of text or token ids."""
        fields = parse(await read_json(request, self._intake), CompletionFields)
        return self._turn(request, fields, fields.as_prompt(), fields.params(), CompletionWording(self._token_bytes))

    async def models(self, request: Request) -> JSONResponse:
        """All models: one."""
        return JSONResponse({"object": "list", "data": [self._model]})

    async def one_model(self, request: Request) -> JSONResponse:
        """One model by its name. Raises ModelNotFound."""
        check_model(self._served, request.path_params["name"])
        return JSONResponse(self._model)

    def _turn(
        self, request: Request, fields: TurnFields, prompt: PromptInput, params: SamplingParams, wording: Wording
    ) -> TurnResponse:
        check_model(self._served, fields.model)
        prompt.check(MAX_UPLOAD_BYTES)
        events = self._answers.answer(identity_of(request), prompt, params, request_headers(request))
        options: dict[str, Any] = {"stream": fields.stream, "include_usage": fields.include_usage}
        return TurnResponse(events, wording, self._served, self._running, **options)
