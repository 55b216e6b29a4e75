"""Who is told what becomes of answers. `answer_telemetry` makes metrics, traces and log lines of it."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from services.telemetry.tracing import Headers, TraceHeaders

if TYPE_CHECKING:
    from services.gateway.answers import Accepted, Answered
    from services.gateway.turns import Understood


class AnswerWatch(Protocol):
    """Is told of one answer. Nothing here raises."""

    @property
    def headers(self) -> TraceHeaders:
        """For the replica: what makes its part of the trace a part of ours."""
        ...

    def step(self, name: str) -> AbstractContextManager[object]:
        """The body is a step of the way."""
        ...

    def understood(self, request: Understood) -> None:
        """Its class is known."""
        ...

    def accepted(self, accepted: Accepted) -> None:
        """It has been planned."""
        ...

    def failed_over(self) -> None:
        """Its replica was lost, and there is another."""
        ...

    def answered(self, answered: Answered) -> None:
        """It has ended well."""
        ...


class Observer(Protocol):
    """Is told of answers."""

    def answer(self, headers: Headers) -> AbstractContextManager[AnswerWatch]:
        """The body is an answer, from its arrival on; an error that comes out of the body is how it ended."""
        ...


class NullWatch:
    """Takes no notice."""

    headers: TraceHeaders = ()

    def step(self, name: str) -> AbstractContextManager[object]:
        """See `AnswerWatch`."""
        return contextlib.nullcontext()

    def understood(self, request: Understood) -> None:
        """See `AnswerWatch`."""

    def accepted(self, accepted: Accepted) -> None:
        """See `AnswerWatch`."""

    def failed_over(self) -> None:
        """See `AnswerWatch`."""

    def answered(self, answered: Answered) -> None:
        """See `AnswerWatch`."""


class NullObserver:
    """Takes no notice."""

    def answer(self, headers: Headers) -> AbstractContextManager[AnswerWatch]:
        """See `Observer`."""
        return contextlib.nullcontext(NullWatch())
