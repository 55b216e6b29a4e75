"""The one table from this project's errors to gRPC status codes, and how an RPC ends by it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from services.errors import (
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
from services.gateway.call import Call
from swaa_runtime.errors import (
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    ModelNotSupported,
    OutOfCapacity,
    RequestCancelled,
    SwaaError,
)

logger = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

RETRY_AFTER_KEY = "retry-after-ms"
"""Trailing metadata: whole milliseconds after which to ask again. The status details say the same as RetryInfo."""

CHALLENGE = ("www-authenticate", 'Bearer realm="swaa"')
"""Goes with a refusal for want of credentials, by gRPC and by HTTP (RFC 6750)."""

STATUS_CODES: dict[type[SwaaError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    ModelNotSupported: grpc.StatusCode.FAILED_PRECONDITION,
    SlaUnattainable: grpc.StatusCode.RESOURCE_EXHAUSTED,
    SessionNotFound: grpc.StatusCode.NOT_FOUND,
    SessionBusy: grpc.StatusCode.ABORTED,
    StaleSession: grpc.StatusCode.ABORTED,
    SessionCorrupt: grpc.StatusCode.DATA_LOSS,
    OutOfCapacity: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    RequestCancelled: grpc.StatusCode.CANCELLED,
    ReplicaLost: grpc.StatusCode.UNAVAILABLE,
    QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RateExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    StoreUnavailable: grpc.StatusCode.UNAVAILABLE,
    EngineFailed: grpc.StatusCode.UNAVAILABLE,
    GatewayStopping: grpc.StatusCode.UNAVAILABLE,
}


def status_code(error: SwaaError) -> grpc.StatusCode:
    """The status of an error: of its class, or the nearest class above it; INTERNAL for what is a bug of ours."""
    return of_class(STATUS_CODES, error, grpc.StatusCode.INTERNAL)


def trailing_metadata(error: SwaaError) -> tuple[tuple[str, str | bytes], ...]:
    """What goes with an error's status: when to try again, if that is known; how to authenticate."""
    if isinstance(error, Unauthenticated):
        return (CHALLENGE,)
    if not isinstance(error, SlaUnattainable | RateExceeded) or error.retry_after_ms is None:
        return ()
    retry_ms = math.ceil(error.retry_after_ms)
    delay = Duration()
    delay.FromMilliseconds(retry_ms)
    detail = AnyMessage()
    detail.Pack(RetryInfo(retry_delay=delay))
    number, _ = status_code(error).value
    status = rpc_status.to_status(Status(code=number, message=str(error), details=[detail]))
    return (*status.trailing_metadata, (RETRY_AFTER_KEY, str(retry_ms)))


def status_name(error: BaseException | None) -> str:
    """gRPC's name of how a turn ended, whatever wire it came by: OK without an error."""
    if error is None:
        return grpc.StatusCode.OK.name
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return grpc.StatusCode.CANCELLED.name
    return (status_code(error) if isinstance(error, SwaaError) else grpc.StatusCode.INTERNAL).name


@contextlib.asynccontextmanager
async def aborting(call: Call) -> AsyncIterator[None]:
    """End the RPC with the status of whatever error of ours comes out of the body."""
    try:
        yield
    except SwaaError as exc:
        await call.abort(status_code(exc), str(exc), trailing_metadata(exc))
    except (asyncio.CancelledError, grpc.aio.AbortError, GeneratorExit):
        raise
    except Exception as exc:
        logger.exception("unexpected error")
        await call.abort(grpc.StatusCode.INTERNAL, f"unexpected {type(exc).__name__}; see the server's log")
