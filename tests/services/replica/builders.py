"""A replica over a tiny random model, and turns for it."""

from __future__ import annotations

import asyncio
import functools
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from services.gateway.catalog import NamedRecipe
from services.gateway.history import saved_states
from services.replica.engine_loop import EngineLoop, OutputStream
from services.replica.job import Done, Event, Job, SessionUse
from services.replica.replica import Replica
from services.restore_plan import RestorePlan
from services.sessions.policy import SessionPolicy
from services.sessions.redis_store import RedisSessionStore
from services.sessions.store import Manifest, SessionStore, Store
from services.telemetry.tracing import Tracing
from swaa_runtime.batch import Batch
from swaa_runtime.config import EngineConfig
from swaa_runtime.engine import Engine
from swaa_runtime.kv_cache.slices import SliceKey
from swaa_runtime.model.loader import LoadedModel
from swaa_runtime.outputs import Checkpoint, Finished, Output, PrefillProgress, TokenOutput
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import Request, SamplingParams
from swaa_runtime.runner import ModelRunner
from swaa_runtime.visibility import Turn
from tests.swaa_runtime.builders import (
    LetterDecoder,
    engine_config,
    integer_request,
    oracle_logits,
    random_tokens,
    tiny_model,
)

TENANT, SESSION = "tests", "chat"
SHARING = {"checkpoint_tokens": 32, "prefix_ttl_s": 60.0}
"""A policy under which sessions share what they start with, at multiples of so few tokens."""
RECIPES = {
    "full": Recipe(),
    "sliding": Recipe(window=8, sink_tokens=2),
    "tail": Recipe(window=8, sink_tokens=2, full_tail=5, full_decode=True, lookback_layers=(0, 2)),
    "interleaved": Recipe(window=16, full_layers="1::2", full_decode=True),
}


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a test of a coroutine function: it runs in an event loop of its own, for minutes at most."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 240))

    return run


class HookedRunner(ModelRunner):
    """A runner that calls back on the engine's thread.

    `before_step`: before each forward pass; `between_layers`: between the layers of a long one, after whoever came.
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        super().__init__(loaded, config)
        self.before_step: Callable[[], None] = lambda: None
        self.between_layers: Callable[[], None] = lambda: None

    def forward(
        self, batch: Batch, rows: torch.Tensor | None = None, between_layers: Callable[[], None] | None = None
    ) -> torch.Tensor:
        self.before_step()
        if between_layers is None:
            return super().forward(batch, rows)

        def both() -> None:
            between_layers()
            self.between_layers()

        return super().forward(batch, rows, both)


class PacedEngine(Engine):
    """An engine that counts checkpoints, those it has given out and those whose fate it has been told since."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.num_exported = 0
        self.num_confirmed = 0

    def step(self, between_layers: Callable[[], None] | None = None) -> list[Output]:
        outputs = super().step(between_layers)
        self.num_exported += sum(isinstance(output, Checkpoint) for output in outputs)
        return outputs


class PacedLoop(EngineLoop):
    """An engine loop that counts what it is told of checkpoints as soon as it is told."""

    def __init__(self, engine: PacedEngine) -> None:
        super().__init__(engine)
        self._paced = engine

    def confirm_saved(self, request_id: str, keys: Collection[SliceKey], lost: Collection[SliceKey] = ()) -> None:
        super().confirm_saved(request_id, keys, lost)
        self._paced.num_confirmed += 1


@dataclass(frozen=True, slots=True)
class Rig:
    """A running engine loop, and what is behind it."""

    loop: EngineLoop
    engine: PacedEngine
    runner: HookedRunner

    def let_the_store_keep_up(self) -> None:
        """From now on no step begins while the store has yet to save a checkpoint.

        Or has forgotten to for seconds, as one does whose turn is cut off.
        """

        def wait() -> None:
            until_s = time.monotonic() + 10
            while self.engine.num_confirmed < self.engine.num_exported and time.monotonic() < until_s:
                time.sleep(0.001)

        self.runner.before_step = wait

    async def used_blocks(self) -> int:
        """Blocks in use and reserved beside those of parked states, after all commands so far."""

        def count(engine: Engine) -> int:
            engine.check_integrity()
            parked = sum(request.num_held_blocks for request in engine.parked.requests)
            return engine.manager.pool.num_used_blocks + engine.manager.num_reserved_blocks - 2 * parked

        return await self.loop.call(count)

    async def forget(self) -> None:
        """Drop all parked states, as an engine does that needs the room: the next turn comes from the store."""

        def evict(engine: Engine) -> None:
            while engine.parked:
                engine.parked.evict_oldest()

        await self.loop.call(evict)


@asynccontextmanager
async def running_engine(config: EngineConfig | None = None) -> AsyncIterator[Rig]:
    config = config or engine_config()
    runner = HookedRunner(tiny_model(), config)
    engine = PacedEngine(runner, config, LetterDecoder(), ())
    loop = PacedLoop(engine)
    loop.start()
    try:
        yield Rig(loop, engine, runner)
    finally:
        runner.before_step = runner.between_layers = lambda: None
        await asyncio.to_thread(loop.close)


def make_replica(rig: Rig, store: Store, tracing: Tracing | None = None, /, **policy: Any) -> Replica:
    storage = rig.runner.storage
    kept = SessionPolicy(**{"ttl_s": 3600.0, **policy})
    bytes_per_block, per_token_layer = storage.bytes_per_block, storage.bytes_per_token_layer
    return Replica(tiny_model(), rig.loop, bytes_per_block, per_token_layer, store, kept, tracing)


def load_plan(manifest: Manifest | None, recipe: str) -> RestorePlan | None:
    """As a gateway plans that finds loading the fastest: all of the session's state, if it is the recipe's."""
    if manifest is None or manifest.recipe != RECIPES[recipe] or not manifest.num_kv_tokens:
        return None
    return RestorePlan("load", "session", "", 0, manifest.num_kv_tokens, 0.0, "it is a test")


@dataclass(frozen=True, slots=True)
class KnownUse(SessionUse):
    """A session with the manifest that a gateway plans its next turn with."""

    manifest: Manifest = field(kw_only=True)

    @classmethod
    def of(cls, manifest: Manifest, tenant: str = TENANT) -> KnownUse:
        return cls(tenant, manifest.session_id, manifest.version, manifest=manifest)


def make_job(
    prompt: int | Sequence[int] = 40,
    session: SessionUse | None = None,
    recipe: str = "tail",
    max_tokens: int = 6,
    **options: Any,
) -> Job:
    tokens = random_tokens(prompt) if isinstance(prompt, int) else prompt
    manifest = session.manifest if isinstance(session, KnownUse) else None
    options = {"request_id": uuid.uuid4().hex, "restore": load_plan(manifest, recipe), **options}
    return Job(
        prompt_token_ids=tuple(tokens),
        recipe_name=recipe,
        recipe=RECIPES[recipe],
        sampling=SamplingParams(max_tokens=max_tokens),
        session=session,
        **options,
    )


async def next_use(store: SessionStore) -> KnownUse:
    """The session as a gateway would plan with it now."""
    return KnownUse.of(await store.get(TENANT, SESSION))


NEW = SessionUse(TENANT, SESSION, 0)


@dataclass(frozen=True, slots=True)
class Ran:
    """A turn that ended well."""

    events: tuple[Event, ...]

    @property
    def done(self) -> Done:
        done = self.events[-1]
        assert isinstance(done, Done)
        return done

    @property
    def tokens(self) -> list[int]:
        return [event.token_id for event in self.events if isinstance(event, TokenOutput)]

    @property
    def progress(self) -> list[PrefillProgress]:
        return [event for event in self.events if isinstance(event, PrefillProgress)]


async def run_turn(replica: Replica, job: Job) -> Ran:
    return Ran(tuple([event async for event in replica.generate(job)]))


def history_of(ran: Ran) -> str:
    """How the state of a turn that was saved came back."""
    assert ran.done.session is not None
    assert ran.done.session.saved, ran.done.session.error
    return ran.done.session.history


async def planned(store: RedisSessionStore, job: Job, **policy: Any) -> Job:
    """The job as a gateway makes it that looks for saved states and loads what it finds."""
    assert job.session is not None
    manifest = job.session.manifest if isinstance(job.session, KnownUse) else None
    tokens = [*(manifest.token_ids if manifest else ()), *job.prompt_token_ids]
    turns = (*(manifest.turns if manifest else ()), Turn(len(tokens) - len(job.prompt_token_ids), len(tokens)))
    loaded = tiny_model()
    named = NamedRecipe(job.recipe_name, "", job.recipe, job.recipe.resolve(loaded.shape.num_layers))
    states = await saved_states(
        store,
        TENANT,
        job.session.session_id,
        SessionPolicy(ttl_s=3600.0, **policy),
        loaded.fingerprint,
        [named],
        manifest,
        tokens,
        turns,
    )
    state = states.get(job.recipe_name)
    plan = (
        None
        if state is None
        else RestorePlan("load", state.source, state.prefix_id, 0, state.num_tokens, 0.0, "it is a test")
    )
    return replace(job, restore=plan)


async def read_all(stream: OutputStream) -> list[Output]:
    """All outputs up to the last."""
    outputs: list[Output] = []
    while not outputs or not isinstance(outputs[-1], Finished):
        outputs.append(await stream.get())
    return outputs


def assert_greedy(manifest: Manifest, recipe: str, first_turn: int = 0) -> None:
    """Every token generated from `first_turn` on is what dense attention over the whole session finds likeliest."""
    loaded = tiny_model()
    request: Request = integer_request(RECIPES[recipe].resolve(loaded.shape.num_layers), manifest.turns, 1, False)
    request.token_ids[:] = manifest.token_ids
    likeliest = oracle_logits(loaded, request).argmax(-1).tolist()
    for turn in manifest.turns[first_turn:]:
        assert turn.stop is not None
        generated = list(manifest.token_ids[turn.generated_start : turn.stop])
        assert likeliest[turn.generated_start - 1 : turn.stop - 1] == generated
