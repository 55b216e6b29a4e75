"""What all users of a load share: connections, what was told, which sessions are free, what happened how often."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx

from services.client import NO_RETRY, Answer, AsyncClient, Busy, ClientError, Overloaded, TurnOptions
from services.gateway.limits import GRPC_OPTIONS
from services.pb.swaa.v1 import long_context_pb2_grpc as pb_grpc
from tests.soak.ledger import Ledger, Told

CALL_TIMEOUT_S = 120.0
SLA_CLASSES = ("quality", "balanced", "interactive")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a service is. `metadata`: what every call brings along."""

    grpc: str
    http: str
    metadata: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the load is, for the machine that it runs on; tokens.

    Attributes:
        shared_tokens: prompts that share their start share up to so many.
        mean_pause_s: that a user thinks between two things.
        max_turns: of a session.
    """

    users: int
    mean_pause_s: float
    shared_tokens: int
    prompt_tokens: tuple[int, int]
    answer_tokens: tuple[int, int]
    max_sessions: int
    max_turns: int


class Refused(Exception):
    """An HTTP request that got another status than 200."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"HTTP {status} {code}: {message}")
        self.status, self.code = status, code


@dataclass(slots=True)
class World:
    """The state of a load.

    Attributes:
        stub: for what the client does not do: raw calls over one channel.
        text: token ids that prompts are cut from.
        tolerated: errors that may happen to anybody; `tolerated_http`: statuses of the same.
        tolerated_unsaved: what may be said of a turn that is not saved, and that in a word.
        counts: (what was done, how it ended).
        faults: what must not happen, a line each.
    """

    target: Target
    client: AsyncClient
    stub: Any
    http: httpx.AsyncClient
    text: Sequence[int]
    sizes: Sizes
    rng: random.Random
    ledger: Ledger = field(default_factory=Ledger)
    tolerated: tuple[type[ClientError], ...] = (Busy, Overloaded)
    tolerated_http: frozenset[int] = frozenset({409, 429})
    tolerated_unsaved: Mapping[str, str] = field(default_factory=lambda: {"the quota is": "quota"})
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    in_use: set[str] = field(default_factory=set)

    def prompt(self, shared: bool = False, at_most: int | None = None) -> list[int]:
        """Token ids: some stretch of the text, or its start, and a number that makes it one of its own."""
        low, high = self.sizes.prompt_tokens
        count = self.rng.randint(low, min(high, at_most or high))
        start = 0 if shared else self.rng.randrange(len(self.text) - high)
        own = self.rng.choices(self.text, k=8)
        return [*self.text[start : start + (self.sizes.shared_tokens if shared else count)], *own]

    def options(self) -> TurnOptions:
        """Of a greedy turn: some SLA class, some length."""
        low, high = self.sizes.answer_tokens
        return {
            "sla": self.rng.choice(SLA_CLASSES),
            "max_tokens": self.rng.randint(low, high),
            "timeout_s": CALL_TIMEOUT_S,
        }

    @contextlib.contextmanager
    def claimed(self, session_id: str) -> Iterator[str]:
        """Nobody else gets the session in the body."""
        self.in_use.add(session_id)
        try:
            yield session_id
        finally:
            self.in_use.discard(session_id)

    def some_session(self, growing: bool = True) -> str | None:
        """A free session; None if there is none. `growing`: one that may have another turn."""
        most = self.sizes.max_turns if growing else 1 << 30
        free = [
            known.session_id
            for known in self.ledger.sessions.values()
            if known.session_id not in self.in_use and known.offset + known.version < most
        ]
        return self.rng.choice(free) if free else None

    def note(self, prompt: Sequence[int], answer: Answer, session: str | None) -> str:
        """Remember a greedy answer; how it ended, in a word."""
        if session is None:
            self.ledger.answered(prompt, answer)
            return "answered"
        result = answer.session
        if result is None:
            raise AssertionError("a turn of a session says nothing of the session")
        if not result.saved:
            return self.unsaved(result.error)
        told = Told(answer.recipe.name, answer.token_ids, answer.text, greedy=True)
        self.ledger.acknowledge(result, told)
        return result.history.partition(":")[0]

    def unsaved(self, error: str) -> str:
        """How a turn ended that was not saved, in a word. Raises AssertionError if that may not happen here."""
        for said, reason in self.tolerated_unsaved.items():
            if said in error:
                return f"unsaved ({reason})"
        raise AssertionError(f"a turn was not saved: {error}")


@contextlib.asynccontextmanager
async def opened(target: Target, text: Sequence[int], sizes: Sizes, seed: int) -> AsyncIterator[World]:
    """A world with open connections. Its clients try nothing again: what goes wrong is seen."""
    limits = httpx.Limits(max_connections=32, max_keepalive_connections=4)
    http = httpx.AsyncClient(
        base_url=f"http://{target.http}", timeout=CALL_TIMEOUT_S, limits=limits, headers=list(target.metadata)
    )
    channel = grpc.aio.insecure_channel(target.grpc, options=GRPC_OPTIONS)
    async with AsyncClient(target.grpc, retry=NO_RETRY, metadata=target.metadata) as client, http, channel:
        stub = pb_grpc.LongContextStub(channel)  # type: ignore[no-untyped-call]
        yield World(target, client, stub, http, text, sizes, random.Random(seed))
