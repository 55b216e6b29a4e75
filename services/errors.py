"""Errors that only the services raise; the same tree as `swaa_runtime.errors`.

SwaaError
├── SessionNotFound         no session of that id
│   └── SessionExpired      there was one
├── SessionBusy             another request is using it
├── StaleSession            it moved on since it was read: somebody else saved a turn
├── SessionCorrupt          what is stored does not check out
│   └── SegmentsMissing     what is to be saved builds on segments that are not stored (any more)
├── StoreUnavailable        the session store does not answer
├── ReplicaLost             the replica that ran a turn is gone, and so is every other that was tried
├── GatewayStopping         the gateway that had the request is being stopped
├── QuotaExceeded           the tenant's stored bytes would come above its quota
├── RateExceeded            the tenant asks for more at a time, or in a minute, than its quota allows
├── Unauthenticated         credentials are missing or not valid
├── PermissionDenied        who asks may not do this
├── ClientTooSlow           (a DeadlineExceeded) the client sends its request, or reads its answer, too slowly
└── SlaUnattainable         strict request, and no recipe is predicted to meet it now
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from swaa_runtime.errors import DeadlineExceeded, SwaaError

T = TypeVar("T")


def of_class(table: Mapping[type[SwaaError], T], error: BaseException, otherwise: T) -> T:
    """A table's entry for the error's class, or for the nearest class above it."""
    for cls in type(error).__mro__:
        if cls in table:
            return table[cls]
    return otherwise


class SessionNotFound(SwaaError):
    """No session of that id."""


class SessionExpired(SessionNotFound):
    """The session's time to live has passed."""


class SessionBusy(SwaaError):
    """Another request holds the session."""


class StaleSession(SwaaError):
    """The session has a newer version than the one this writer read; nothing was changed."""


class SessionCorrupt(SwaaError):
    """Stored bytes are missing, or fail their checksum or their bounds."""


class SegmentsMissing(SessionCorrupt):
    """A session or prefix to be saved names segments that are neither stored nor given; nothing was changed.

    Attributes:
        segment_ids: all of them. Whoever still has their bytes gives them, and saves again.
    """

    def __init__(self, name: str, segment_ids: Sequence[str]) -> None:
        others = f", nor are {len(segment_ids) - 1} others" if len(segment_ids) > 1 else ""
        super().__init__(f"{name}: segment {segment_ids[0]} is neither stored nor given{others}")
        self.segment_ids = frozenset(segment_ids)


class StoreUnavailable(SwaaError):
    """The session store cannot be reached or refuses to work."""


class ReplicaLost(SwaaError):
    """A replica stopped answering; the turn may go on elsewhere."""


class GatewayStopping(SwaaError):
    """The gateway is being stopped; another one may take the request."""


class QuotaExceeded(SwaaError):
    """What is to be stored does not fit into the tenant's quota."""


class RateExceeded(SwaaError):
    """The tenant asks for more at a time, or in a minute, than its quota allows.

    Attributes:
        quota: which one: a field of `services.quota.Quota`.
        retry_after_ms: when the same request would be taken; None: never.
    """

    def __init__(self, message: str, quota: str = "", retry_after_ms: float | None = None) -> None:
        super().__init__(message)
        self.quota = quota
        self.retry_after_ms = retry_after_ms


class Unauthenticated(SwaaError):
    """Credentials are missing or not valid; the message does not say in which way.

    Attributes:
        reason: in which way, for the operator's figures; one of `services.gateway.auth.authenticator.REASONS`.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class PermissionDenied(SwaaError):
    """Who asks is known, and may not do this."""


class ClientTooSlow(DeadlineExceeded):
    """What the client sends, or reads, comes more slowly than the service waits."""


class SlaUnattainable(SwaaError):
    """A strict request that no recipe is predicted to satisfy now.

    Attributes:
        wait_ms: predicted wait behind what runs already.
        retry_after_ms: when it is predicted to be satisfied if asked again; None: not even by an idle replica.
    """

    def __init__(self, message: str, wait_ms: float = 0.0, retry_after_ms: float | None = None) -> None:
        super().__init__(message)
        self.wait_ms = wait_ms
        self.retry_after_ms = retry_after_ms
