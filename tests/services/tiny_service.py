"""The whole embedded service in this process, over a tiny random model and a store in memory, listening on a port."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType, SimpleNamespace
from typing import Any, TypeVar

from services.gateway.answer_telemetry import observer_of
from services.gateway.answers import Answers
from services.gateway.auth.authenticator import Authenticator, Everybody
from services.gateway.catalog import Catalog, NamedRecipe, QualityTable
from services.gateway.catalog_source import FixedCatalog
from services.gateway.prompt import PromptEncoder
from services.gateway.quotas import QuotaCounter, Quotas, Unlimited
from services.gateway.receiving import Intake
from services.gateway.replicas import LocalReplicas
from services.gateway.server import GatewayServer
from services.gateway.service import LongContextService
from services.gateway.session_admin import SessionAdmin
from services.gateway.turns import TurnPlanner
from services.replica.facts import ModelFacts
from services.replica.replica import Replica
from services.sessions.policy import SessionPolicy
from services.telemetry.metrics import QuotaMetrics, StoreMetrics
from services.telemetry.observed_store import ObservedStore
from services.telemetry.process import Telemetry
from tests.swaa_runtime.builders import VOCAB_SIZE, LetterDecoder, tiny_model

from .gateway.builders import CLASSES
from .replica.builders import RECIPES, Rig, make_replica, running_engine
from .replica.test_wire import FACTS
from .sessions.fake_store import FakeSessionStore

MAX_TOKENS = 1024
EVERYBODY, UNLIMITED = Everybody(), Unlimited()


class LetterTokenizer(LetterDecoder):
    """Every character is one token, whatever it is; a chat template that shows what it was given."""

    chat_template = "{{ messages }}"
    added_tokens_decoder: Mapping[int, str] = MappingProxyType({})
    backend_tokenizer = SimpleNamespace(to_str=lambda: '{"decoder": null}')
    eos_token = None
    eos_token_id = None

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [(ord(letter) - ord("0")) % VOCAB_SIZE for letter in text]}

    def apply_chat_template(self, messages: Sequence[dict[str, str]], **options: Any) -> str:
        return "".join(f"{message['role'][0]}:{message['content']};" for message in messages) + "a:"


@dataclass(frozen=True, slots=True)
class TinyService:
    """A running service, and what is behind it."""

    server: GatewayServer
    answers: Answers
    replica: Replica
    rig: Rig
    store: FakeSessionStore
    facts: ModelFacts
    sessions: SessionAdmin

    @property
    def address(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.server.port}"


@asynccontextmanager
async def tiny_service(
    telemetry: Telemetry | None = None,
    authenticator: Authenticator = EVERYBODY,
    catalog: Catalog | None = None,
    counter: QuotaCounter = UNLIMITED,
    **policy: Any,
) -> AsyncIterator[TinyService]:
    """A service of its own, in this event loop. `telemetry` is told what it does, `counter` what tenants use."""
    telemetry, fake = telemetry or Telemetry(), FakeSessionStore()
    store = ObservedStore(fake, StoreMetrics(telemetry.registry))
    async with running_engine() as rig:
        replica = make_replica(rig, store, telemetry.tracing, **policy)
        loaded = tiny_model()
        facts = replace(
            FACTS,
            fingerprint=loaded.fingerprint,
            shape=loaded.shape,
            max_session_tokens=MAX_TOKENS,
            eos_token_ids=frozenset(),
        )
        kept = SessionPolicy(**{"ttl_s": 3600.0, **policy})
        encoder = PromptEncoder(LetterTokenizer(), VOCAB_SIZE, MAX_TOKENS)
        catalogs = FixedCatalog(catalog or tiny_catalog())
        turns = TurnPlanner(catalogs, encoder, store, kept, MAX_TOKENS)
        observer = observer_of(telemetry, catalogs)
        quotas = Quotas(counter, QuotaMetrics(telemetry.registry))
        answers = Answers(turns, LocalReplicas(replica, facts), store, quotas, facts.eos_token_ids, observer)
        sessions = SessionAdmin(store, kept, catalogs)
        service = LongContextService("tiny", facts, answers, store, sessions, Intake(1 << 30))
        server = GatewayServer(service, authenticator, "127.0.0.1:0")
        await server.start()
        try:
            yield TinyService(server, answers, replica, rig, fake, facts, sessions)
        finally:
            await server.stop(0)
            await replica.close()


T = TypeVar("T")


@contextmanager
def in_thread(context: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
    """What the context gives, living in a thread of its own on an event loop of its own: for tests that block."""
    started: Future[T] = Future()
    stopping = asyncio.Event()
    loop = asyncio.new_event_loop()

    async def live() -> None:
        async with context() as given:
            started.set_result(given)
            await stopping.wait()

    def run() -> None:
        try:
            loop.run_until_complete(live())
        except BaseException as exc:
            if started.done():
                raise
            started.set_exception(exc)
        finally:
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    given = started.result()
    try:
        yield given
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join()


def tiny_service_thread() -> AbstractContextManager[TinyService]:
    """A tiny service for what blocks."""
    return in_thread(tiny_service)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what nobody tells. Raises TimeoutError after 20 s."""
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110 - the service under test tells nobody
            await asyncio.sleep(0.005)


def tiny_catalog() -> Catalog:
    """The tiny model's recipes, of made up quality."""
    num_layers = tiny_model().shape.num_layers
    recipes = {
        name: NamedRecipe(name, f"about {name}", recipe, recipe.resolve(num_layers)) for name, recipe in RECIPES.items()
    }
    recall = {name: (1.0, 0.9 if name == "full" else 0.5) for name in recipes}
    return Catalog(recipes, CLASSES, QualityTable("made up", (100, 1000), recall))
