"""The RPCs of swaa.v1.LongContext: the way of a request, from headers and prompt to a stream of events."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field

from services.gateway import messages, planner
from services.gateway.catalog import Catalog
from services.gateway.errors import Context, aborting
from services.gateway.failover import run_turn
from services.gateway.limits import MAX_UPLOAD_BYTES
from services.gateway.prompt import PromptEncoder, PromptInput
from services.gateway.replicas import LeasedReplica, Replicas
from services.gateway.sessions import TENANT, SessionRpcs, new_session_id
from services.gateway.turns import Planned, TurnPlanner
from services.gateway.upload import collect_upload
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.replica.facts import ModelFacts
from services.replica.job import Done, Job
from services.sessions.policy import SessionPolicy
from services.sessions.store import Store
from swaa_runtime.errors import DeadlineExceeded, InvalidRequest
from swaa_runtime.outputs import PrefillProgress, TokenOutput
from swaa_runtime.request import SamplingParams

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Clock:
    """When things happened, as a client of this gateway sees them; on the clock of time.monotonic."""

    arrival_s: float = field(default_factory=time.monotonic)
    first_token_s: float = 0.0
    last_token_s: float = 0.0

    def token(self) -> None:
        """A token came."""
        self.last_token_s = time.monotonic()
        self.first_token_s = self.first_token_s or self.last_token_s


class LongContextService(SessionRpcs):
    """Stateless: all it knows is the catalogue, the tokenizer, the store, and where replicas are.

    Args:
        model_name: as it is told to clients.
        facts: of the replicas' model, as they were when the service started.
    """

    def __init__(
        self,
        model_name: str,
        facts: ModelFacts,
        catalog: Catalog,
        encoder: PromptEncoder,
        replicas: Replicas,
        store: Store,
        policy: SessionPolicy,
    ) -> None:
        super().__init__(facts, store, policy)
        self._model_name = model_name
        self._replicas = replicas
        self._turns = TurnPlanner(catalog, encoder, store, policy, facts.max_session_tokens, TENANT)

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
        clock = _Clock()
        params = messages.sampling_params(sampling)
        metadata = context.invocation_metadata() or ()
        request = await self._turns.understand(prompt, params.max_tokens, metadata, new_session_id())
        deadline_s = _deadline_s(context)
        async with self._replicas.lease(request.session) as replica:
            planned = await self._turns.plan(request, replica)
            job = self._turns.job(planned, uuid.uuid4().hex, params, deadline_s)
            yield messages.accepted_message(job, planned)
            async with contextlib.aclosing(self._run(job, planned, replica, clock)) as responses:
                async for response in responses:
                    yield response

    async def _run(
        self, job: Job, planned: Planned, replica: LeasedReplica, clock: _Clock
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        async def replan(cut_off: Job, other: LeasedReplica) -> Job:
            return await self._turns.replan(planned, cut_off, other)

        running = run_turn(self._replicas, replica, job, replan, self._store, self._turns.encoder.decoder)
        async with contextlib.aclosing(running) as events:
            async for event in events:
                if isinstance(event, PrefillProgress):
                    yield messages.prefill_message(event)
                elif isinstance(event, TokenOutput):
                    clock.token()
                    yield messages.token_message(event)
                else:
                    yield _finish(event, job, planned, clock)

    async def Plan(self, request: pb.PlanRequest, context: Context) -> pb.PlanResponse:
        """See the proto."""
        async with aborting(context):
            max_tokens = request.max_tokens if request.HasField("max_tokens") else messages.DEFAULT_MAX_TOKENS
            params = SamplingParams(max_tokens=max_tokens)
            if request.prompt_tokens and request.HasField("prompt"):
                raise InvalidRequest("prompt_tokens", request.prompt_tokens, "give either prompt or prompt_tokens")
            metadata = context.invocation_metadata() or ()
            if request.prompt_tokens:
                objective, history = await self._turns.objective(metadata)
                async with self._replicas.lease(None) as replica:
                    work = self._turns.work(request.prompt_tokens, params.max_tokens, history, objective, replica)
                    return messages.plan_message(self._turns.choose(objective, work, replica), objective, work)
            prompt = messages.prompt_input(request.prompt)
            prompt.check()
            understood = await self._turns.understand(prompt, params.max_tokens, metadata, new_session_id())
            async with self._replicas.lease(understood.session) as replica:
                planned = await self._turns.plan(understood, replica)
                return messages.plan_message(planned.plan, understood.objective, planned.work)

    async def ListRecipes(self, request: pb.ListRecipesRequest, context: Context) -> pb.ListRecipesResponse:
        """See the proto."""
        facts = self._facts
        response = pb.ListRecipesResponse(
            model=self._model_name,
            num_layers=facts.shape.num_layers,
            max_model_tokens=facts.max_session_tokens,
            attention_backend=facts.attention_backend,
            device=facts.device,
            cost_source=f"{facts.cost.hardware}, {facts.cost.measured_at}",
        )
        messages.catalog_message(self._turns.catalog, response)
        return response


def _finish(done: Done, job: Job, planned: Planned, clock: _Clock) -> pb.GenerateResponse:
    ttft_ms = (clock.first_token_s - clock.arrival_s) * 1e3
    after_first = done.num_generated_tokens - 1
    tpot_ms = (clock.last_token_s - clock.first_token_s) * 1e3 / after_first if after_first > 0 else 0.0
    timings = pb.Timings(
        queue_ms=done.queue_ms,
        restore_ms=done.restore_ms,
        ttft_ms=ttft_ms,
        tpot_ms=tpot_ms,
        save_ms=done.save_ms,
        total_ms=(time.monotonic() - clock.arrival_s) * 1e3,
    )
    missed = planner.misses(planned.request.objective, ttft_ms, tpot_ms)
    session_id = job.session.session_id if job.session else ""
    logger.info(
        "request %s session %s recipe %s prompt %d restored %d generated %d ttft %.0f ms tpot %.1f ms sla %s",
        job.request_id,
        session_id or "-",
        job.recipe_name,
        planned.work.prompt_tokens,
        done.num_restored_tokens,
        done.num_generated_tokens,
        ttft_ms,
        tpot_ms,
        "missed" if missed else "met",
    )
    return messages.finish_message(done, planned.work, session_id, timings, missed)


def _deadline_s(context: Context) -> float | None:
    remaining_s: float | None = context.time_remaining()  # the stubs forget that there may be none
    if remaining_s is None:
        return None
    if remaining_s <= 0:
        raise DeadlineExceeded("the deadline had passed when the request arrived")
    return time.monotonic() + remaining_s
