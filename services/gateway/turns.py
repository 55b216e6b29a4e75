"""From what a client asked to a job for a replica: headers and session, token ids, saved state, recipe.

understand   what the request says, and the session it names        needs no replica
plan         recipe and way to restore, on the replica it got       needs its backlog and prices
replan       the same recipe on another replica, after one was lost
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from services.errors import SessionNotFound, StaleSession
from services.gateway import planner
from services.gateway.catalog import Catalog, NamedRecipe
from services.gateway.catalog_source import Catalogs
from services.gateway.history import saved_states, session_state
from services.gateway.identity import Identity, keyed_session_id
from services.gateway.planner import Work
from services.gateway.prompt import PromptEncoder, PromptInput
from services.gateway.replay import before_last_turn, has_saved, last_prompt
from services.gateway.replicas import LeasedReplica
from services.gateway.sla import IDEMPOTENCY_HEADER, NEW_SESSION, RECIPE_HEADER, Objective, parse_headers
from services.gateway.turn_overhead import TurnOverhead
from services.replica.job import Job, SessionUse
from services.restore_plan import RestorePlan, SavedState, plan_restore
from services.sessions.policy import SessionPolicy
from services.sessions.store import Manifest, Store
from swaa_runtime.errors import InvalidRequest
from swaa_runtime.request import SamplingParams
from swaa_runtime.visibility import Turn


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asks, what the headers ask for, and the session they name. One catalogue holds from here to the end."""

    identity: Identity
    catalog: Catalog
    objective: Objective
    history: Manifest | None
    arrival_s: float


@dataclass(frozen=True, slots=True)
class Understood:
    """A request whose headers, session and prompt are known.

    `session` is None without one. `saved`: the session with this very turn, if an earlier attempt has saved it.
    """

    prompt: PromptInput
    max_tokens: int
    asked: Asked
    session: SessionUse | None
    token_ids: tuple[int, ...]
    saved: Manifest | None = None

    @property
    def objective(self) -> Objective:
        """What it asks for."""
        return self.asked.objective

    @property
    def history(self) -> Manifest | None:
        """The session it continues."""
        return self.asked.history

    @property
    def history_token_ids(self) -> tuple[int, ...]:
        """Tokens of the session so far."""
        return () if self.history is None else self.history.token_ids

    @property
    def all_token_ids(self) -> list[int]:
        """History and prompt."""
        return [*self.history_token_ids, *self.token_ids]

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Spans of the history's turns and of the new one, which is open."""
        start = len(self.history_token_ids)
        closed = () if self.history is None else self.history.turns
        return (*closed, Turn(start, start + len(self.token_ids)))


@dataclass(frozen=True, slots=True)
class Planned:
    """A request that has been understood and planned, and not yet run."""

    request: Understood
    work: Work
    plan: planner.Plan


class TurnPlanner:
    """Knows where the catalogue is, the tokenizer, the store and how sessions are kept.

    Args:
        max_session_tokens: longest session that replicas take.

    Attributes:
        overhead: what turns take beside the engine. It is all that is learnt here: whoever answers tells it.
    """

    def __init__(
        self,
        catalogs: Catalogs,
        encoder: PromptEncoder,
        store: Store,
        policy: SessionPolicy,
        max_session_tokens: int,
    ) -> None:
        self.catalogs = catalogs
        self.encoder = encoder
        self._store = store
        self._policy = policy
        self._max_session_tokens = max_session_tokens
        self.overhead = TurnOverhead()

    @property
    def catalog(self) -> Catalog:
        """The catalogue as it is now."""
        return self.catalogs.current

    async def ask(self, identity: Identity, metadata: Iterable[tuple[str, str | bytes]]) -> Asked:
        """What the headers ask for, and the session they name. Raises InvalidRequest, SessionNotFound and the like."""
        arrival_s, catalog, history = time.monotonic(), self.catalog, None
        objective = parse_headers(metadata, catalog.sla_classes, catalog.tenant(identity.tenant))
        if objective.recipe_name is not None:
            catalog.recipe(RECIPE_HEADER, objective.recipe_name)
        if objective.session_id not in (None, NEW_SESSION):
            assert objective.session_id is not None  # noqa: S101 - for the type checker
            history = await self._store.get(identity.tenant, objective.session_id)
        return Asked(identity, catalog, objective, history, arrival_s)

    async def understand(
        self,
        identity: Identity,
        prompt: PromptInput,
        max_tokens: int,
        metadata: Iterable[tuple[str, str | bytes]],
        new_session_id: str,
    ) -> Understood:
        """Headers, session and prompt to token ids.

        Args:
            new_session_id: what a new session is to be called.
        Raises:
            InvalidRequest: for what is out of bounds; SessionNotFound and the like for the session; StaleSession if the
                session that the idempotency key opened has moved on.
        """
        asked, tenant = await self.ask(identity, metadata), identity.tenant
        objective, history, key = asked.objective, asked.history, asked.objective.idempotency_key
        if objective.session_id == NEW_SESSION and key:
            new_session_id = keyed_session_id(tenant, key)
            history = await self._opened(tenant, new_session_id)
        if history is not None and has_saved(history, objective):
            return await self._saved(prompt, max_tokens, asked, history)
        if history is not None and objective.session_id == NEW_SESSION:
            raise StaleSession(f"session {history.session_id!r}, which this {IDEMPOTENCY_HEADER} opened, has moved on")
        session = None
        if history is not None:
            session = self._session(asked, history.session_id, history.version)
        elif objective.session_id is not None:
            session = self._session(asked, new_session_id, 0)
        history_ids = () if history is None else history.token_ids
        token_ids = await asyncio.to_thread(self.encoder.encode, prompt, history_ids)
        self._check_length(asked, len(token_ids), max_tokens)
        return Understood(prompt, max_tokens, asked, session, tuple(token_ids))

    def _session(self, asked: Asked, session_id: str, version: int) -> SessionUse:
        tenant, key = asked.identity.tenant, asked.objective.idempotency_key
        return SessionUse(tenant, session_id, version, key, asked.catalog.tenant(tenant).quota.stored_bytes)

    async def _opened(self, tenant: str, session_id: str) -> Manifest | None:
        try:
            return await self._store.get(tenant, session_id)
        except SessionNotFound:
            return None

    async def _saved(self, prompt: PromptInput, max_tokens: int, asked: Asked, saved: Manifest) -> Understood:
        """The request of a turn that is saved already. Raises InvalidRequest if the saved one had another prompt."""
        history, thinking = before_last_turn(saved), saved.recipe.thinking
        history_ids = () if history is None else history.token_ids
        token_ids = tuple(await asyncio.to_thread(self.encoder.encode, prompt, history_ids, thinking))
        if token_ids != last_prompt(saved):
            bound = "was given with another prompt; a key is for one call only"
            raise InvalidRequest(IDEMPOTENCY_HEADER, asked.objective.idempotency_key, bound)
        session = self._session(asked, saved.session_id, saved.version - 1)
        return Understood(prompt, max_tokens, replace(asked, history=history), session, token_ids, saved)

    def replay(self, request: Understood, saved: Manifest) -> Planned:
        """A turn that is saved already, as a plan: nothing is to be computed, and nothing was weighed."""
        catalog = request.asked.catalog
        known_tokens, named = len(request.all_token_ids), _named(saved, catalog)
        reason = "an earlier attempt has saved this turn: its tokens are sent again"
        is_known = named.name in catalog.recipes
        prediction = planner.Prediction(
            ttft_ms=0.0,
            wait_ms=0.0,
            work_ms=0.0,
            tpot_ms=0.0,
            quality=catalog.quality.quality_at(named.name, known_tokens) if is_known else 0.0,
            kv_bytes=0,
            computed_tokens=0,
            restore=RestorePlan("none", None, "", 0, known_tokens, 0.0, reason, work_tokens=0),
        )
        work = Work(len(request.token_ids), request.max_tokens, request.history, continues=True)
        return Planned(request, work, planner.Plan(planner.Candidate(named, prediction, ()), reason))

    async def plan(self, request: Understood, replica: LeasedReplica) -> Planned:
        """Pick the recipe. Raises SlaUnattainable, InvalidRequest, StoreUnavailable."""
        planned = await self._plan(request, replica)
        if planned.plan.chosen.named.recipe.thinking:  # only now is it known that the prompt has to ask for it
            token_ids = await asyncio.to_thread(self.encoder.encode, request.prompt, request.history_token_ids, True)
            self._check_length(request.asked, len(token_ids), request.max_tokens)
            request = replace(request, token_ids=tuple(token_ids))
            planned = await self._plan(request, replica)
        return planned

    async def _plan(self, request: Understood, replica: LeasedReplica) -> Planned:
        states: dict[str, SavedState] = {}
        if request.session is not None:
            recipes = request.asked.catalog.recipes.values()
            states = await self._states(request, request.session, recipes, replica)
        work, plan = self._choose(request.asked, len(request.token_ids), request.max_tokens, states, replica)
        return Planned(request, work, plan)

    def plan_length(
        self, asked: Asked, prompt_tokens: int, max_tokens: int, replica: LeasedReplica
    ) -> tuple[Work, planner.Plan]:
        """The same for a prompt of which only the length is known: no prefix can be. Raises as `plan` does."""
        self._check_length(asked, prompt_tokens, max_tokens)
        own = {name: session_state(asked.history, named) for name, named in asked.catalog.recipes.items()}
        states = {name: state for name, state in own.items() if state is not None}
        return self._choose(asked, prompt_tokens, max_tokens, states, replica)

    def job(self, planned: Planned, request_id: str, sampling: SamplingParams, deadline_s: float | None) -> Job:
        """The turn, for a replica."""
        named = planned.plan.chosen.named
        return Job(
            request_id=request_id,
            prompt_token_ids=planned.request.token_ids,
            recipe_name=named.name,
            recipe=named.recipe,
            sampling=sampling,
            priority=planned.request.objective.priority,
            deadline_s=deadline_s,
            ttft_due_s=planned.request.asked.arrival_s + planned.request.objective.ttft_ms / 1e3,
            tpot_ms=planned.request.objective.tpot_ms,
            session=planned.request.session,
            restore=planned.plan.chosen.prediction.restore,
        )

    async def replan(self, planned: Planned, job: Job, replica: LeasedReplica) -> Job:
        """The job for another replica: what was saved meanwhile may spare it most of the work."""
        request, named = planned.request, planned.plan.chosen.named
        if request.session is None:
            return job
        states = await self._states(request, request.session, [named], replica)
        stop = len(request.all_token_ids) + len(job.sent_token_ids)
        state = states.get(named.name)
        restore = plan_restore(named.rules, request.turns, stop, state, replica.facts.cost, replica.is_hot)
        return replace(job, restore=restore)

    async def _states(
        self, request: Understood, session: SessionUse, recipes: Iterable[NamedRecipe], replica: LeasedReplica
    ) -> dict[str, SavedState]:
        return await saved_states(
            self._store,
            session.tenant,
            session.session_id,
            self._policy,
            replica.facts.fingerprint,
            recipes,
            request.history,
            request.all_token_ids,
            request.turns,
        )

    def _choose(
        self,
        asked: Asked,
        prompt_tokens: int,
        max_tokens: int,
        states: Mapping[str, SavedState],
        replica: LeasedReplica,
    ) -> tuple[Work, planner.Plan]:
        """Nothing is awaited between the look at the backlog and the choice, nor before it is promised (`Answers`)."""
        work = Work(
            prompt_tokens,
            max_tokens,
            asked.history,
            continues=asked.objective.session_id is not None,
            backlog=replica.backlog,
            spent_ms=(time.monotonic() - asked.arrival_s) * 1e3,
            beside_ms=self.overhead.ms,
            states=states,
            is_hot=replica.is_hot,
        )
        facts = replica.facts
        plan = planner.plan(asked.objective, work, asked.catalog, facts.cost, facts.shape.bytes_per_token_layer)
        return work, plan

    def _check_length(self, asked: Asked, prompt_tokens: int, max_tokens: int) -> None:
        known = prompt_tokens + (0 if asked.history is None else len(asked.history.token_ids))
        if known + max_tokens > self._max_session_tokens:
            raise InvalidRequest(
                "prompt",
                f"{known} tokens with history, and max_tokens {max_tokens}",
                f"together they must be at most {self._max_session_tokens}",
            )


def _named(saved: Manifest, catalog: Catalog) -> NamedRecipe:
    """The recipe that the session was saved under, whether it is in the catalogue still or not."""
    known = catalog.recipes.get(saved.recipe_name)
    if known is not None and known.recipe == saved.recipe:
        return known
    num_layers = len(next(iter(catalog.recipes.values())).rules)
    rules = saved.recipe.resolve(num_layers)
    return NamedRecipe(f"{saved.recipe_name} (as it was)", "no longer in the catalogue", saved.recipe, rules)
