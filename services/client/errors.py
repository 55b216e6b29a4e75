"""What can go wrong with a call: the gRPC statuses of the proto, as exceptions.

ClientError
├── InvalidRequest      a field or header is wrong; the message names it, its value and its bound
├── NotFound            no such session, or it expired
├── Busy                the session is in use, or moved on since it was read
├── FailedPrecondition  the model or the service cannot do what was asked, however often it is asked
├── Overloaded          no room, or strict and no recipe is predicted to meet the SLA; `retry_after_s` says when it may
├── DeadlineExceeded    `timeout_s` passed
├── Cancelled           the service ended the call, or the client was closed
├── DataLoss            what is stored of the session, or the file to import, is damaged
├── Unauthenticated     the API key or token is missing, or not valid
├── PermissionDenied    who asks may not do this
├── Unavailable         the service, its store or its engine cannot be reached
└── ServerError         a bug of the service, or an answer that is none
"""

from __future__ import annotations

import math
from typing import Any

import grpc

RETRY_AFTER_METADATA = "retry-after-ms"
"""Trailing metadata of a refusal: milliseconds after which the same request may be taken."""


class ClientError(Exception):
    """A call that did not end well. `status` is the name of its gRPC status, the text is the service's own."""

    status = "UNKNOWN"

    def __init__(self, message: str, status: str | None = None) -> None:
        super().__init__(message)
        self.status = self.status if status is None else status


class InvalidRequest(ClientError):
    """A field or header has a value outside its bound."""

    status = "INVALID_ARGUMENT"


class NotFound(ClientError):
    """There is no such session, or it expired."""

    status = "NOT_FOUND"


class Busy(ClientError):
    """Another request uses the session, or has moved it on since it was read."""

    status = "ABORTED"


class FailedPrecondition(ClientError):
    """The model or the service cannot do what was asked."""

    status = "FAILED_PRECONDITION"


class Overloaded(ClientError):
    """There is no room now. `retry_after_s`: seconds after which there may be; None: trying again is no use."""

    status = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, status: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, status)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(ClientError):
    """The call's `timeout_s` passed, retries included."""

    status = "DEADLINE_EXCEEDED"


class Cancelled(ClientError):
    """The service ended the call, or the client was closed meanwhile."""

    status = "CANCELLED"


class DataLoss(ClientError):
    """Stored bytes, or those of a file to import, do not check out."""

    status = "DATA_LOSS"


class Unauthenticated(ClientError):
    """The API key or token is missing, unknown, expired or revoked; the service does not say which."""

    status = "UNAUTHENTICATED"


class PermissionDenied(ClientError):
    """Who asks may not do this."""

    status = "PERMISSION_DENIED"


class Unavailable(ClientError):
    """The service, its session store or its engine cannot be reached."""

    status = "UNAVAILABLE"


class ServerError(ClientError):
    """The service failed in a way that it does not explain, or answered what is no answer."""

    status = "INTERNAL"


_BY_STATUS: dict[str, type[ClientError]] = {
    **{
        cls.status: cls
        for cls in (
            InvalidRequest,
            NotFound,
            Busy,
            FailedPrecondition,
            Overloaded,
            DeadlineExceeded,
            Cancelled,
            DataLoss,
            Unauthenticated,
            PermissionDenied,
            Unavailable,
        )
    },
    "OUT_OF_RANGE": InvalidRequest,
    "UNIMPLEMENTED": FailedPrecondition,
}


def error_of(failure: grpc.aio.AioRpcError) -> ClientError:
    """The exception for a call's status; whatever is not in the tree above is a ServerError."""
    status, message = failure.code().name, failure.details() or ""
    cls = _BY_STATUS.get(status, ServerError)
    if cls is Overloaded:
        return Overloaded(message, status, _retry_after_s(failure))
    return cls(message, status)


def _retry_after_s(failure: grpc.aio.AioRpcError) -> float | None:
    trailing: Any = failure.trailing_metadata() or ()  # the stubs know only one of its pairs
    try:
        after_ms = float(dict(trailing)[RETRY_AFTER_METADATA])
    except (KeyError, ValueError):
        return None
    return after_ms / 1e3 if 0 <= after_ms < math.inf else None
