"""The RPCs of swaa.v1.LongContext: the way of a request, from headers and prompt to a stream of events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from services.cost import CostProfile
from services.gateway import messages, planner
from services.gateway.catalog import Catalog
from services.gateway.errors import Context, aborting
from services.gateway.history import saved_states, session_state
from services.gateway.limits import MAX_UPLOAD_BYTES
from services.gateway.planner import Work
from services.gateway.prompt import PromptEncoder, PromptInput
from services.gateway.sessions import TENANT, SessionRpcs, new_session_id
from services.gateway.sla import NEW_SESSION, RECIPE_HEADER, Objective, parse_headers
from services.gateway.upload import collect_upload
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.replica.job import Done, Job, SessionUse
from services.replica.replica import Replica
from services.replica.saver import Store
from services.restore_plan import SavedState
from services.sessions.policy import SessionPolicy
from services.sessions.store import Manifest
from swaa_runtime.errors import DeadlineExceeded, InvalidRequest
from swaa_runtime.outputs import PrefillProgress, TokenOutput
from swaa_runtime.request import SamplingParams
from swaa_runtime.visibility import Turn

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Deployment:
    """What the gateway serves and tells about: model, device, and where its figures come from."""

    model_name: str
    device: str
    attention_backend: str
    max_model_tokens: int
    session_policy: SessionPolicy


@dataclass(frozen=True, slots=True)
class Planned:
    """A request that has been understood and planned, and not yet run. `session_id` is empty without a session."""

    objective: Objective
    work: Work
    plan: planner.Plan
    token_ids: tuple[int, ...]
    session_id: str


class LongContextService(SessionRpcs):
    """Stateless: all it knows is the catalogue, the cost profile, the store and the replica it was given."""

    def __init__(
        self,
        deployment: Deployment,
        catalog: Catalog,
        cost: CostProfile,
        encoder: PromptEncoder,
        replica: Replica,
        store: Store,
    ) -> None:
        super().__init__(replica, store, deployment.session_policy)
        self._deployment = deployment
        self._catalog = catalog
        self._cost = cost
        self._encoder = encoder

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
        arrival_s = time.monotonic()
        params = messages.sampling_params(sampling)
        planned = await self._plan(prompt, params.max_tokens, context)
        request_id = uuid.uuid4().hex
        job = self._job(request_id, planned, params, _deadline_s(context))
        session_id = job.session.session_id if job.session else ""
        yield messages.accepted_message(request_id, session_id, planned.plan, planned.objective, planned.work)
        async with contextlib.aclosing(self._replica.generate(job)) as events:
            async for event in events:
                if isinstance(event, PrefillProgress):
                    yield messages.prefill_message(event)
                elif isinstance(event, TokenOutput):
                    yield messages.token_message(event)
                else:
                    yield self._finish(event, planned, request_id, session_id, arrival_s)

    async def Plan(self, request: pb.PlanRequest, context: Context) -> pb.PlanResponse:
        """See the proto."""
        async with aborting(context):
            max_tokens = request.max_tokens if request.HasField("max_tokens") else messages.DEFAULT_MAX_TOKENS
            params = SamplingParams(max_tokens=max_tokens)
            if request.prompt_tokens and request.HasField("prompt"):
                raise InvalidRequest("prompt_tokens", request.prompt_tokens, "give either prompt or prompt_tokens")
            if request.prompt_tokens:
                objective, history = await self._objective(context)
                work = self._work(request.prompt_tokens, params.max_tokens, history, objective)
                work = replace(work, states=self._session_states(history))
                made = self._choose(objective, work)
            else:
                prompt = messages.prompt_input(request.prompt)
                prompt.check()
                planned = await self._plan(prompt, params.max_tokens, context)
                objective, work, made = planned.objective, planned.work, planned.plan
            return messages.plan_message(made, objective, work)

    async def ListRecipes(self, request: pb.ListRecipesRequest, context: Context) -> pb.ListRecipesResponse:
        """See the proto."""
        response = pb.ListRecipesResponse(
            model=self._deployment.model_name,
            num_layers=self._replica.shape.num_layers,
            max_model_tokens=self._deployment.max_model_tokens,
            attention_backend=self._deployment.attention_backend,
            device=self._deployment.device,
            cost_source=f"{self._cost.hardware}, {self._cost.measured_at}",
        )
        messages.catalog_message(self._catalog, response)
        return response

    async def _objective(self, context: Context) -> tuple[Objective, Manifest | None]:
        """What the headers ask for, and the session they name."""
        objective = parse_headers(context.invocation_metadata() or (), self._catalog.sla_classes)
        if objective.recipe_name is not None:
            self._catalog.recipe(RECIPE_HEADER, objective.recipe_name)
        if objective.session_id in (None, NEW_SESSION):
            return objective, None
        assert objective.session_id is not None  # noqa: S101 - for the type checker
        return objective, await self._store.get(TENANT, objective.session_id)

    async def _plan(self, prompt: PromptInput, max_tokens: int, context: Context) -> Planned:
        """Headers, session and prompt to token ids and a recipe."""
        objective, history = await self._objective(context)
        history_ids = () if history is None else history.token_ids
        token_ids = await asyncio.to_thread(self._encoder.encode, prompt, history_ids)
        session_id = "" if objective.session_id is None else history.session_id if history else new_session_id()
        work = await self._known(self._work(len(token_ids), max_tokens, history, objective), session_id, token_ids)
        made = self._choose(objective, work)
        if made.chosen.named.recipe.thinking:  # only now is it known that the prompt has to ask for it
            token_ids = await asyncio.to_thread(self._encoder.encode, prompt, history_ids, True)
            work = await self._known(self._work(len(token_ids), max_tokens, history, objective), session_id, token_ids)
            made = self._choose(objective, work)
        return Planned(objective, work, made, tuple(token_ids), session_id)

    async def _known(self, work: Work, session_id: str, token_ids: Sequence[int]) -> Work:
        """The work, and what KV is saved for its tokens. Without a session nothing is looked up."""
        if not session_id:
            return work
        history = work.history
        start = work.history_tokens
        states = await saved_states(
            self._store,
            TENANT,
            session_id,
            self._policy,
            self._replica.model_fingerprint,
            self._catalog.recipes.values(),
            history,
            [*(history.token_ids if history else ()), *token_ids],
            (*(history.turns if history else ()), Turn(start, start + len(token_ids))),
        )
        is_hot = history is not None and self._replica.is_hot(TENANT, history)
        return replace(work, states=states, is_hot=is_hot)

    def _session_states(self, history: Manifest | None) -> dict[str, SavedState]:
        found = {name: session_state(history, named) for name, named in self._catalog.recipes.items()}
        return {name: state for name, state in found.items() if state is not None}

    def _work(self, prompt_tokens: int, max_tokens: int, history: Manifest | None, objective: Objective) -> Work:
        total = prompt_tokens + max_tokens + (0 if history is None else len(history.token_ids))
        if total > self._deployment.max_model_tokens:
            raise InvalidRequest(
                "prompt",
                f"{total - max_tokens} tokens with history, and max_tokens {max_tokens}",
                f"together they must be at most {self._deployment.max_model_tokens}",
            )
        queue_ms = self._replica.queued_tokens * self._cost.token_ms
        return Work(prompt_tokens, max_tokens, history, objective.session_id is not None, queue_ms)

    def _choose(self, objective: Objective, work: Work) -> planner.Plan:
        return planner.plan(objective, work, self._catalog, self._cost, self._replica.bytes_per_token_layer)

    def _job(self, request_id: str, planned: Planned, params: SamplingParams, deadline_s: float | None) -> Job:
        session = None
        if planned.objective.session_id is not None:
            session = SessionUse(TENANT, planned.session_id, planned.work.history)
        named = planned.plan.chosen.named
        return Job(
            request_id=request_id,
            prompt_token_ids=planned.token_ids,
            recipe_name=named.name,
            recipe=named.recipe,
            sampling=params,
            priority=planned.objective.priority,
            deadline_s=deadline_s,
            session=session,
            restore=planned.plan.chosen.prediction.restore,
        )

    def _finish(
        self, done: Done, planned: Planned, request_id: str, session_id: str, arrival_s: float
    ) -> pb.GenerateResponse:
        ttft_ms = (done.first_token_s - arrival_s) * 1e3
        after_first = done.num_generated_tokens - 1
        tpot_ms = (done.last_token_s - done.first_token_s) * 1e3 / after_first if after_first > 0 else 0.0
        timings = pb.Timings(
            queue_ms=done.queue_ms,
            restore_ms=done.restore_ms,
            ttft_ms=ttft_ms,
            tpot_ms=tpot_ms,
            save_ms=done.save_ms,
            total_ms=(time.monotonic() - arrival_s) * 1e3,
        )
        missed = planner.misses(planned.objective, ttft_ms, tpot_ms)
        logger.info(
            "request %s session %s recipe %s prompt %d restored %d generated %d ttft %.0f ms tpot %.1f ms sla %s",
            request_id,
            session_id or "-",
            planned.plan.chosen.named.name,
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
