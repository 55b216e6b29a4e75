"""The RPCs of swaa.v1.LongContext that run or plan: messages in, a stream of messages out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator

from services.gateway import messages
from services.gateway.answers import Accepted, Answers
from services.gateway.errors import Context, aborting
from services.gateway.limits import MAX_UPLOAD_BYTES
from services.gateway.prompt import PromptInput
from services.gateway.sessions import SessionRpcs
from services.gateway.upload import collect_upload
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.replica.facts import ModelFacts
from services.sessions.policy import SessionPolicy
from services.sessions.store import Store
from swaa_runtime.errors import DeadlineExceeded, InvalidRequest
from swaa_runtime.outputs import PrefillProgress, TokenOutput
from swaa_runtime.request import SamplingParams


class LongContextService(SessionRpcs):
    """Translates: what it answers is `Answers`' and the store's.

    Args:
        model_name: as it is told to clients.
        facts: of the replicas' model, as they were when the service started.
    """

    def __init__(
        self, model_name: str, facts: ModelFacts, answers: Answers, store: Store, policy: SessionPolicy
    ) -> None:
        super().__init__(facts, store, policy)
        self._model_name = model_name
        self._answers = answers

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        """See the proto."""
        async with aborting(context):
            prompt = messages.prompt_input(request.prompt)
            prompt.check()
            async for response in self._generate(prompt, request.sampling, context):
                yield response

    async def GenerateUpload(
        self, request_iterator: AsyncIterator[pb.GenerateUploadRequest], context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        """See the proto."""
        async with aborting(context):
            prompt, sampling = await collect_upload(request_iterator)
            prompt.check(MAX_UPLOAD_BYTES)
            async for response in self._generate(prompt, sampling, context):
                yield response

    async def _generate(
        self, prompt: PromptInput, sampling: pb.Sampling, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        params = messages.sampling_params(sampling)
        answering = self._answers.answer(prompt, params, context.invocation_metadata() or (), _deadline_s(context))
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

    async def Plan(self, request: pb.PlanRequest, context: Context) -> pb.PlanResponse:
        """See the proto."""
        async with aborting(context):
            max_tokens = request.max_tokens if request.HasField("max_tokens") else messages.DEFAULT_MAX_TOKENS
            params = SamplingParams(max_tokens=max_tokens)
            if request.prompt_tokens and request.HasField("prompt"):
                raise InvalidRequest("prompt_tokens", request.prompt_tokens, "give either prompt or prompt_tokens")
            headers = context.invocation_metadata() or ()
            if request.prompt_tokens:
                objective, work, plan = await self._answers.plan_length(
                    request.prompt_tokens, params.max_tokens, headers
                )
                return messages.plan_message(plan, objective, work)
            prompt = messages.prompt_input(request.prompt)
            prompt.check()
            planned = await self._answers.plan(prompt, params.max_tokens, headers)
            return messages.plan_message(planned.plan, planned.request.objective, planned.work)

    async def ListRecipes(self, request: pb.ListRecipesRequest, context: Context) -> pb.ListRecipesResponse:
        """See the proto."""
        facts, source = self._facts, self._answers.turns.catalogs
        response = pb.ListRecipesResponse(
            model=self._model_name,
            num_layers=facts.shape.num_layers,
            max_model_tokens=facts.max_session_tokens,
            attention_backend=facts.attention_backend,
            device=facts.device,
            cost_source=f"{facts.cost.hardware}, {facts.cost.measured_at}",
            catalog_source=str(source.path),
            catalog_error=source.error,
            catalog_loaded_at_s=source.loaded_at_s,
        )
        messages.catalog_message(source.current, response)
        return response


def _deadline_s(context: Context) -> float | None:
    remaining_s: float | None = context.time_remaining()  # the stubs forget that there may be none
    if remaining_s is None:
        return None
    if remaining_s <= 0:
        raise DeadlineExceeded("the deadline had passed when the request arrived")
    return time.monotonic() + remaining_s
