"""What requests a load is made of: drawn from distributions, or read back from a JSON Lines file."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from services.gateway.sla import SESSION_HEADER, SLA_HEADER
from services.load.arrivals import Bursts, arrival_times_s
from swaa_runtime.errors import InvalidRequest

OPEN_SESSIONS = 4
"""Conversations that go on side by side, at most."""

FOLLOW_UP_SHARE = 0.1
"""A later turn's prompt is so much shorter than the first: a question, not a document."""

MIN_FOLLOW_UP_TOKENS = 16


@checked_dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class TraceRequest:
    """One request of a trace.

    Attributes:
        arrival_ms: when it arrives, from the start of the load.
        headers: those of the service, but for x-swaa-session: what that is to be comes from `session`.
        session: key of the conversation it belongs to; empty for none. The first one opens it.
    """

    arrival_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    prompt_tokens: Annotated[int, Field(ge=1)]
    max_tokens: Annotated[int, Field(ge=1)]
    headers: dict[str, str] = field(default_factory=dict)
    session: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """One alternative of a mix: a whole number in [low, high], or a name."""

    weight: float
    low: int = 0
    high: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class Mix:
    """Alternatives by weight, as `500:0.5,2000-4000:0.5` or `interactive:0.7,quality:0.3` writes them."""

    choices: tuple[Choice, ...]

    def number(self, rng: random.Random) -> int:
        """One draw; uniform within a range."""
        choice = self._draw(rng)
        return rng.randint(choice.low, choice.high)

    def name(self, rng: random.Random) -> str:
        """One draw."""
        return self._draw(rng).name

    def _draw(self, rng: random.Random) -> Choice:
        return rng.choices(self.choices, [choice.weight for choice in self.choices])[0]


def parse_numbers(field: str, text: str) -> Mix:
    """A mix of whole numbers and ranges. A weight that is left out is 1. Raises InvalidRequest naming `field`."""
    choices = []
    for value, weight in _parts(field, text):
        low, _, high = value.partition("-")
        try:
            numbers = int(low), int(high or low)
        except ValueError:
            raise InvalidRequest(field, value, "must be a whole number, or a range like 500-2000") from None
        if not 1 <= numbers[0] <= numbers[1]:
            raise InvalidRequest(field, value, "must be at least 1, and a range must ascend")
        choices.append(Choice(weight, *numbers))
    return Mix(tuple(choices))


def parse_names(field: str, text: str) -> Mix:
    """A mix of names. A weight that is left out is 1. Raises InvalidRequest naming `field`."""
    return Mix(tuple(Choice(weight, name=value) for value, weight in _parts(field, text)))


def _parts(field: str, text: str) -> Iterable[tuple[str, float]]:
    for part in text.split(","):
        value, _, weight = part.strip().partition(":")
        try:
            number = float(weight or 1)
        except ValueError:
            raise InvalidRequest(field, part, "the weight after the colon must be a number above 0") from None
        if not 0 < number < float("inf"):
            raise InvalidRequest(field, part, "the weight after the colon must be a number above 0")
        if not value:
            raise InvalidRequest(field, text, "must be values with weights, like a:0.5,b:0.5")
        yield value, number


@dataclass(frozen=True, slots=True)
class TraceSpec:
    """What a trace is drawn from.

    Attributes:
        rate_per_s, duration_s, bursts: see `arrivals`.
        prompt_tokens, max_tokens: of whole numbers; sla_classes: of names.
        sessions_share: share of the requests that belong to conversations, of `session_turns` turns each.
        headers: sent with every request.
    """

    rate_per_s: float
    duration_s: float
    prompt_tokens: Mix
    max_tokens: Mix
    sla_classes: Mix
    bursts: Bursts | None = None
    sessions_share: float = 0.0
    session_turns: int = 3
    seed: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.sessions_share <= 1:
            raise InvalidRequest("sessions_share", self.sessions_share, "must be in 0..1")
        if self.session_turns < 1:
            raise InvalidRequest("session_turns", self.session_turns, "must be at least 1")
        if SESSION_HEADER in self.headers:
            raise InvalidRequest(SESSION_HEADER, self.headers[SESSION_HEADER], "sessions come from sessions_share")


def make_trace(spec: TraceSpec) -> list[TraceRequest]:
    """Draw a trace; the same for the same spec. Arrivals and contents have generators of their own, so that the same
    seed at another rate asks the same questions in the same order."""
    times = arrival_times_s(spec.rate_per_s, spec.duration_s, random.Random(f"{spec.seed}/arrivals"), spec.bursts)
    rng = random.Random(f"{spec.seed}/contents")
    turns_left: dict[str, int] = {}
    trace: list[TraceRequest] = []
    for at_s in times:
        session, is_follow_up = _session(spec, rng, turns_left, len(trace))
        prompt_tokens = spec.prompt_tokens.number(rng)
        if is_follow_up:
            prompt_tokens = max(MIN_FOLLOW_UP_TOKENS, round(prompt_tokens * FOLLOW_UP_SHARE))
        headers = {SLA_HEADER: spec.sla_classes.name(rng), **spec.headers}
        trace.append(TraceRequest(at_s * 1e3, prompt_tokens, spec.max_tokens.number(rng), headers, session))
    return trace


def _session(spec: TraceSpec, rng: random.Random, turns_left: dict[str, int], index: int) -> tuple[str, bool]:
    """The conversation of the next request (empty: none), and whether it goes on; `turns_left` is kept up to date."""
    if rng.random() >= spec.sessions_share:
        return "", False
    going_on = [key for key, turns in turns_left.items() if turns > 0]
    if going_on and (len(going_on) >= OPEN_SESSIONS or rng.random() < 0.5):
        key = rng.choice(going_on)
        turns_left[key] -= 1
        return key, True
    key = f"s{index}"
    turns_left[key] = spec.session_turns - 1
    return key, False


def write_trace(path: Path, trace: Sequence[TraceRequest]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(asdict(request)) + "\n" for request in trace), encoding="utf-8")


def read_trace(path: Path) -> list[TraceRequest]:
    """Read `write_trace`'s format; in order of arrival.

    Raises:
        InvalidRequest: naming file, line, field, value and bound.
    """
    adapter = TypeAdapter(TraceRequest)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as exc:
        raise InvalidRequest("trace", str(path), f"cannot be read: {exc.strerror}") from None
    trace: list[TraceRequest] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            request = adapter.validate_json(line)
        except ValidationError as exc:
            first = exc.errors()[0]
            where = ".".join(map(str, first["loc"])) or "line"
            raise InvalidRequest(f"{path}:{number}: {where}", first["input"], first["msg"]) from None
        if SESSION_HEADER in request.headers:
            raise InvalidRequest(f"{path}:{number}: headers", SESSION_HEADER, "name the conversation in `session`")
        trace.append(request)
    if not trace:
        raise InvalidRequest("trace", str(path), "must have at least one request")
    return sorted(trace, key=lambda request: request.arrival_ms)
