"""The one table from this project's errors to HTTP statuses, and what a refusal looks like: OpenAI's shape.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.errors import (
    ClientTooSlow,
    GatewayStopping,
    PermissionDenied,
    QuotaExceeded,
    RateExceeded,
    ReplicaLost,
    SessionBusy,
    SessionCorrupt,
    SessionNotFound,
    SlaUnattainable,
    StaleSession,
    StoreUnavailable,
    Unauthenticated,
    of_class,
)
from services.gateway.errors import CHALLENGE
from services.gateway.http.schema import ModelNotFound
from swaa_runtime.errors import (
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    ModelNotSupported,
    OutOfCapacity,
    RequestCancelled,
    SwaaError,
)

INVALID, SERVER = "invalid_request_error", "server_error"
FULL_RETRY_MS = 1000.0
"""When to come back to a service that has no room: nobody knows, so soon."""


@dataclass(frozen=True, slots=True)
class HttpError:
    """How an error is told. `retry`: whether the same request may succeed a little later."""

    status: int
    type: str
    code: str
    retry: bool = False


HTTP_ERRORS: dict[type[SwaaError], HttpError] = {
    InvalidRequest: HttpError(400, INVALID, "invalid_value"),
    ModelNotFound: HttpError(404, INVALID, "model_not_found"),
    ModelNotSupported: HttpError(400, INVALID, "model_not_supported"),
    SlaUnattainable: HttpError(429, "sla_unattainable", "sla_unattainable"),
    SessionNotFound: HttpError(404, INVALID, "session_not_found"),
    SessionBusy: HttpError(409, "conflict", "session_busy", retry=True),
    StaleSession: HttpError(409, "conflict", "session_moved_on"),
    SessionCorrupt: HttpError(500, SERVER, "session_corrupt"),
    OutOfCapacity: HttpError(429, "rate_limit_exceeded", "out_of_capacity", retry=True),
    QuotaExceeded: HttpError(429, "insufficient_quota", "insufficient_quota"),
    RateExceeded: HttpError(429, "rate_limit_exceeded", "rate_limit_exceeded"),
    Unauthenticated: HttpError(401, INVALID, "invalid_api_key"),
    PermissionDenied: HttpError(403, INVALID, "permission_denied"),
    ClientTooSlow: HttpError(408, INVALID, "timeout"),
    DeadlineExceeded: HttpError(504, SERVER, "deadline_exceeded"),
    RequestCancelled: HttpError(499, INVALID, "cancelled"),
    ReplicaLost: HttpError(503, SERVER, "replica_lost", retry=True),
    StoreUnavailable: HttpError(503, SERVER, "store_unavailable", retry=True),
    EngineFailed: HttpError(503, SERVER, "engine_failed", retry=True),
    GatewayStopping: HttpError(503, SERVER, "gateway_stopping", retry=True),
}
UNEXPECTED = HttpError(500, SERVER, "internal_error")


def http_error(error: BaseException) -> HttpError:
    """Of the error's class, or the nearest class above it; `UNEXPECTED` for what is a bug of ours."""
    return of_class(HTTP_ERRORS, error, UNEXPECTED)


def error_body(error: BaseException) -> dict[str, Any]:
    """The error in OpenAI's shape; of our insides nothing but a class's name."""
    told = http_error(error)
    message = str(error) if isinstance(error, SwaaError) else f"unexpected {type(error).__name__}; see the server's log"
    param = error.field if isinstance(error, InvalidRequest) else None
    return {"error": {"message": message, "type": told.type, "param": param, "code": told.code}}


def error_headers(error: BaseException) -> dict[str, str]:
    """When to try again, as OpenAI's clients understand it: `x-should-retry` keeps them from trying in vain."""
    retry_ms = _retry_ms(error)
    if retry_ms is not None:
        return {"retry-after": str(math.ceil(retry_ms / 1e3)), "retry-after-ms": str(math.ceil(retry_ms))}
    challenge = dict([CHALLENGE]) if isinstance(error, Unauthenticated) else {}
    return {"x-should-retry": "true" if http_error(error).retry else "false", **challenge}


def _retry_ms(error: BaseException) -> float | None:
    """After how many ms to ask again; None if that is not known, or in vain."""
    if isinstance(error, SlaUnattainable | RateExceeded):
        return error.retry_after_ms
    return FULL_RETRY_MS if isinstance(error, OutOfCapacity) else None


async def answer_error(request: Request, error: Exception) -> Response:
    """For Starlette: any error of ours, or an unexpected one."""
    return JSONResponse(error_body(error), http_error(error).status, error_headers(error))


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """For Starlette: what is wrong before it is known what is asked for, such as the path."""
    assert isinstance(error, HTTPException)  # noqa: S101 - for the type checker
    known = {404: "unknown_path", 405: "method_not_allowed", 408: "timeout", 413: "too_large", 415: "not_json"}
    body = {"message": error.detail, "type": INVALID, "param": None, "code": known.get(error.status_code, "refused")}
    return JSONResponse({"error": body}, error.status_code, error.headers)
