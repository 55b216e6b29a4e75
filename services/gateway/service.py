"""The RPCs of swaa.v1.LongContext that run or plan: messages in, a stream of messages out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator

from services.gateway import messages
from services.gateway.answers import Accepted, Answers
from services.gateway.call import Call
from services.gateway.errors import aborting
from services.gateway.limits import MAX_UPLOAD_BYTES
from services.gateway.plans import plan_response, recipes_response
from services.gateway.prompt import PromptInput
from services.gateway.receiving import Intake
from services.gateway.session_admin import SessionAdmin
from services.gateway.sessions import SessionRpcs
from services.gateway.upload import collect_upload
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.replica.facts import ModelFacts
from services.sessions.store import Store
from swaa_runtime.errors import DeadlineExceeded
from swaa_runtime.outputs import PrefillProgress, TokenOutput


class LongContextService(SessionRpcs):
    """Translates: what it answers is `Answers`' and the store's.

    Args:
        model_name: as it is told to clients.
        facts: of the replicas' model, as they were when the service started.
        intake: counts what is on its way in.
    """

    def __init__(
        self, model_name: str, facts: ModelFacts, answers: Answers, store: Store, sessions: SessionAdmin, intake: Intake
    ) -> None:
        super().__init__(facts, store, sessions, intake)
        self._model_name = model_name
        self._answers = answers

    async def Generate(self, request: pb.GenerateRequest, context: Call) -> AsyncIterator[pb.GenerateResponse]:
        """See the proto."""
        async with aborting(context):
            prompt = messages.prompt_input(request.prompt)
            prompt.check()
            async for response in self._generate(prompt, request.sampling, context):
                yield response

    async def GenerateUpload(
        self, request_iterator: AsyncIterator[pb.GenerateUploadRequest], context: Call
    ) -> AsyncIterator[pb.GenerateResponse]:
        """See the proto."""
        async with aborting(context):
            with self._intake.receiving("prompt", MAX_UPLOAD_BYTES) as receiving:
                prompt, sampling = await collect_upload(request_iterator, receiving, self._facts.max_session_tokens)
                prompt.check(MAX_UPLOAD_BYTES)
            async for response in self._generate(prompt, sampling, context):
                yield response

    async def _generate(
        self, prompt: PromptInput, sampling: pb.Sampling, context: Call
    ) -> AsyncIterator[pb.GenerateResponse]:
        params = messages.sampling_params(sampling)
        headers, deadline_s = context.invocation_metadata(), _deadline_s(context)
        answering = self._answers.answer(context.identity, prompt, params, headers, deadline_s)
        async with contextlib.aclosing(answering) as events:
            async for event in events:
                if isinstance(event, Accepted):
                    yield messages.accepted_message(event)
                elif isinstance(event, PrefillProgress):
                    yield messages.prefill_message(event)
                elif isinstance(event, TokenOutput):
                    yield messages.token_message(event)
                else:
                    yield messages.finish_message(event)

    async def Plan(self, request: pb.PlanRequest, context: Call) -> pb.PlanResponse:
        """See the proto."""
        async with aborting(context):
            return await plan_response(self._answers, context.identity, request, context.invocation_metadata())

    async def ListRecipes(self, request: pb.ListRecipesRequest, context: Call) -> pb.ListRecipesResponse:
        """See the proto."""
        return recipes_response(self._model_name, context.identity, self._facts, self._answers.turns.catalogs)


def _deadline_s(context: Call) -> float | None:
    remaining_s = context.time_remaining()
    if remaining_s is None:
        return None
    if remaining_s <= 0:
        raise DeadlineExceeded("the deadline had passed when the request arrived")
    return time.monotonic() + remaining_s
