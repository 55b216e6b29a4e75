"""What clients were told: turns of sessions that were acknowledged as saved, and answers; held to what is stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from services.client import Answer, Session, SessionResult
from services.sessions.store import Manifest

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Told:
    """A turn as its client got it: its tokens over gRPC, its text over HTTP. The oracle can check greedy ones."""

    recipe: str
    token_ids: tuple[int, ...] | None
    text: str
    greedy: bool


@dataclass(frozen=True, slots=True)
class OneShot:
    """An answer without a session, greedy, and its prompt."""

    recipe: str
    prompt: tuple[int, ...]
    token_ids: tuple[int, ...]


@dataclass(slots=True)
class KnownSession:
    """A session as its clients know it. Version v is turn `offset + v - 1`: a fork starts with turns, at version 1.

    Attributes:
        version: of the last turn that was acknowledged.
        turns: what was told of which turn; those whose client went away are missing.
    """

    session_id: str
    offset: int = 0
    version: int = 0
    turns: dict[int, Told] = field(default_factory=dict)


class Ledger:
    """All sessions that clients believe in, and the answers that can be checked."""

    def __init__(self, max_one_shots: int = 16) -> None:
        self.sessions: dict[str, KnownSession] = {}
        self.one_shots: list[OneShot] = []
        self.num_acknowledged = 0
        self._max_one_shots = max_one_shots

    def acknowledge(self, result: SessionResult, told: Told) -> None:
        """A turn was said to be saved."""
        known = self.sessions.setdefault(result.session_id, KnownSession(result.session_id))
        known.version = result.version
        known.turns[known.offset + result.version - 1] = told
        self.num_acknowledged += 1

    def copied(self, source_id: str, copy: Session) -> None:
        """A session was forked, or exported and imported."""
        source = self.sessions[source_id]
        turns = {index: told for index, told in source.turns.items() if index < copy.num_turns}
        self.sessions[copy.session_id] = KnownSession(copy.session_id, copy.num_turns - 1, copy.version, turns)

    def forget(self, session_id: str) -> None:
        """Its client has deleted it."""
        self.sessions.pop(session_id, None)

    def answered(self, prompt: Sequence[int], answer: Answer) -> None:
        """A greedy answer without a session. The oldest ones are forgotten."""
        self.one_shots.append(OneShot(answer.recipe.name, tuple(prompt), answer.token_ids))
        del self.one_shots[: -self._max_one_shots]


def lost(known: KnownSession, stored: Manifest | None, decode: Decode) -> list[str]:
    """What of a session is not as its clients were told; a line each."""
    if stored is None:
        return [f"session {known.session_id} is gone at version {known.version}"] if known.turns else []
    if stored.version < known.version:
        return [f"session {known.session_id} is at version {stored.version}, {known.version} was acknowledged"]
    faults = []
    for index, told in known.turns.items():
        if index >= len(stored.turns):
            faults.append(f"session {known.session_id}: turn {index} is not stored, of {len(stored.turns)}")
            continue
        turn = stored.turns[index]
        kept = stored.token_ids[turn.generated_start : turn.stop]
        same = kept == told.token_ids if told.token_ids is not None else decode(kept) == told.text
        if not same:
            faults.append(f"session {known.session_id}: turn {index} is not what was streamed")
    return faults
