"""The one table from this project's errors to gRPC status codes."""

from __future__ import annotations

import grpc

from services.errors import (
    QuotaExceeded,
    SessionBusy,
    SessionCorrupt,
    SessionNotFound,
    SlaUnattainable,
    StaleSession,
    StoreUnavailable,
)
from swaa_runtime.errors import (
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    ModelNotSupported,
    OutOfCapacity,
    RequestCancelled,
    SwaaError,
)

STATUS_CODES: dict[type[SwaaError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    ModelNotSupported: grpc.StatusCode.FAILED_PRECONDITION,
    SlaUnattainable: grpc.StatusCode.FAILED_PRECONDITION,
    SessionNotFound: grpc.StatusCode.NOT_FOUND,
    SessionBusy: grpc.StatusCode.ABORTED,
    StaleSession: grpc.StatusCode.ABORTED,
    SessionCorrupt: grpc.StatusCode.DATA_LOSS,
    OutOfCapacity: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    RequestCancelled: grpc.StatusCode.CANCELLED,
    QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    StoreUnavailable: grpc.StatusCode.UNAVAILABLE,
    EngineFailed: grpc.StatusCode.UNAVAILABLE,
}


def status_code(error: SwaaError) -> grpc.StatusCode:
    """The status of an error: of its class, or the nearest class above it; INTERNAL for what is a bug of ours."""
    for cls in type(error).__mro__:
        if cls in STATUS_CODES:
            return STATUS_CODES[cls]
    return grpc.StatusCode.INTERNAL
