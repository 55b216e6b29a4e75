"""Statuses to exceptions."""

from __future__ import annotations

import grpc
import pytest
from grpc.aio import Metadata

from services.client import (
    Busy,
    Cancelled,
    ClientError,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Overloaded,
    PermissionDenied,
    ServerError,
    Unauthenticated,
    Unavailable,
)
from services.client.errors import RETRY_AFTER_METADATA, error_of
from services.gateway.errors import STATUS_CODES

TREE = {
    "INVALID_ARGUMENT": InvalidRequest,
    "OUT_OF_RANGE": InvalidRequest,
    "NOT_FOUND": NotFound,
    "ABORTED": Busy,
    "FAILED_PRECONDITION": FailedPrecondition,
    "UNIMPLEMENTED": FailedPrecondition,
    "RESOURCE_EXHAUSTED": Overloaded,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "CANCELLED": Cancelled,
    "DATA_LOSS": DataLoss,
    "PERMISSION_DENIED": PermissionDenied,
    "UNAUTHENTICATED": Unauthenticated,
    "UNAVAILABLE": Unavailable,
}


def failure(code: grpc.StatusCode, *trailing: tuple[str, str]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, Metadata(), Metadata(*trailing), "why", None)


@pytest.mark.parametrize("code", grpc.StatusCode)
def test_every_status_is_an_error_with_its_message(code: grpc.StatusCode) -> None:
    error = error_of(failure(code))
    assert type(error) is TREE.get(code.name, ServerError)
    assert (str(error), error.status) == ("why", code.name)
    assert isinstance(error, ClientError)


def test_what_the_gateway_answers_on_purpose_is_no_server_error() -> None:
    for code in STATUS_CODES.values():
        assert not isinstance(error_of(failure(code)), ServerError)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("1500", 1.5), ("0", 0.0), ("0.5", 0.0005), ("-1", None), ("inf", None), ("nan", None), ("soon", None)],
)
def test_when_to_come_back(value: str, seconds: float | None) -> None:
    error = error_of(failure(grpc.StatusCode.RESOURCE_EXHAUSTED, (RETRY_AFTER_METADATA, value)))
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == seconds
