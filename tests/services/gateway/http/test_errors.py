"""Every error of ours has a status over HTTP as it has one over gRPC."""

from __future__ import annotations

import grpc
import pytest

import services.sessions.embedded_redis  # noqa: F401 - its errors are part of the tree
from services.errors import SessionExpired
from services.gateway.errors import STATUS_CODES, status_code
from services.gateway.http.errors import HTTP_ERRORS, error_body, http_error
from swaa_runtime.errors import InvalidRecipe, InvalidRequest, SwaaError

# What HTTP makes of gRPC's statuses, by google.rpc.Code; what differs is said where it does.
BY_CODE = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.DATA_LOSS: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


@pytest.mark.parametrize("cls", STATUS_CODES)
def test_both_tables_agree(cls: type[SwaaError]) -> None:
    error = cls("field", 0, "bound") if issubclass(cls, InvalidRequest) else cls("message")
    told = http_error(error)
    expected = 429 if cls.__name__ == "SlaUnattainable" else BY_CODE[status_code(error)]
    assert told.status == expected
    assert told.code != "internal_error"


def test_names_of_errors_are_their_own() -> None:
    codes = [told.code for told in HTTP_ERRORS.values()]
    assert len(set(codes)) == len(codes)


def test_an_error_is_told_as_openai_does() -> None:
    assert error_body(InvalidRecipe("window", 0, "must be above 0")) == {
        "error": {
            "message": "window is 0: must be above 0",
            "type": "invalid_request_error",
            "param": "window",
            "code": "invalid_value",
        }
    }
    assert error_body(SessionExpired("late"))["error"]["code"] == "session_not_found"
