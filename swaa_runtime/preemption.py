"""Whom to take out for a request that would otherwise miss its due time. Pure functions of predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from swaa_runtime.request import Request
from swaa_runtime.urgency import urgency

MAX_PREEMPTIONS = 2
"""A request is taken out no more often than this, and not again before it has computed something."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A running request that could be taken out.

    Attributes:
        slack_ms: of its first token, or of its next one while it decodes.
        ends_in_ms: when it is predicted to be done if it is left alone, generating all it may.
        size_bytes: host memory that its state would take; None: it cannot be moved now.
    """

    request: Request
    slack_ms: float
    ends_in_ms: float
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class Lack:
    """Blocks, and places among the running, that a waiting request lacks now."""

    num_blocks: int
    num_slots: int

    def is_met(self, given: Iterable[Request]) -> bool:
        """Whether what these hold is enough."""
        holders = list(given)
        return self.num_slots <= len(holders) and self.num_blocks <= sum(r.num_reserved_blocks for r in holders)


@dataclass(frozen=True, slots=True)
class Need:
    """A waiting request that would be late if nobody made room.

    Attributes:
        slack_ms: how long it can wait.
        stays_ms: how long it would stay: whoever makes room for it comes back after that.
    """

    request: Request
    slack_ms: float
    stays_ms: float
    lack: Lack


def wait_ms(lack: Lack, running: Sequence[Candidate]) -> float:
    """How long until enough of those that run are done by themselves."""
    gone: list[Request] = []
    for candidate in sorted(running, key=lambda candidate: candidate.ends_in_ms):
        gone.append(candidate.request)
        if lack.is_met(gone):
            return candidate.ends_in_ms
    return float("inf")


def choose_victims(need: Need, running: Sequence[Candidate], free_bytes: int) -> list[Request]:
    """The fewest of the least urgent that make room, with states of `free_bytes` together at most. Empty: nobody is."""
    victims: list[Request] = []
    for candidate in sorted(running, key=lambda c: urgency(c.request, c.slack_ms), reverse=True):
        if candidate.size_bytes is None or candidate.size_bytes > free_bytes or not _may_go(need, candidate):
            continue
        victims.append(candidate.request)
        free_bytes -= candidate.size_bytes
        if need.lack.is_met(victims):
            return _without_needless(need, victims)
    return []


def _may_go(need: Need, candidate: Candidate) -> bool:
    """Whether a request may be taken out for this one: less urgent, not more important, not too often."""
    request, wanted = candidate.request, need.request
    if request.priority > wanted.priority or request.num_preemptions >= MAX_PREEMPTIONS:
        return False
    if request.num_computed_tokens <= request.preempted_at_tokens:
        return False
    if urgency(request, candidate.slack_ms) <= urgency(wanted, need.slack_ms):
        return False
    harmless = candidate.slack_ms < 0 or candidate.slack_ms >= need.stays_ms
    return request.priority < wanted.priority or harmless


def _without_needless(need: Need, victims: list[Request]) -> list[Request]:
    """Large ones may have made small ones needless: spare those, the most urgent first."""
    for request in reversed(victims):
        rest = [other for other in victims if other is not request]
        if need.lack.is_met(rest):
            victims = rest
    return victims
