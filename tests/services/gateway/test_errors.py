"""Every error of ours has the status that the proto promises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

import services.sessions.embedded_redis  # noqa: F401 - its errors are part of the tree
from services.errors import SegmentsMissing, SessionExpired, SlaUnattainable
from services.gateway.errors import STATUS_CODES, aborting, status_code, trailing_metadata
from swaa_runtime.errors import IntegrityError, InvalidRecipe, InvalidRequest, OutOfCapacity, SwaaError
from tests.services.replica.builders import asynchronous

from .builders import FakeContext

# What is not one of ours to explain to a client: bugs, and errors that no RPC can raise.
INTERNAL = {"IntegrityError", "DemoFailed", "ClusterFailed"}


def subclasses(cls: type[SwaaError]) -> Iterator[type[SwaaError]]:
    for child in cls.__subclasses__():
        yield child
        yield from subclasses(child)


def make(cls: type[SwaaError]) -> SwaaError:
    if issubclass(cls, SegmentsMissing):
        return cls("session", ["segment"])
    return cls("field", 0, "bound") if issubclass(cls, InvalidRequest) else cls("message")


def test_every_error_of_the_tree_has_a_status() -> None:
    tree = [cls for cls in subclasses(SwaaError) if not cls.__module__.startswith("tests.")]
    assert len(tree) >= 15
    without = {cls.__name__ for cls in tree if status_code(make(cls)) is grpc.StatusCode.INTERNAL}
    assert without <= INTERNAL
    assert "IntegrityError" in without


def test_the_table_is_the_protos() -> None:
    expected = {
        "InvalidRequest": "INVALID_ARGUMENT",
        "SessionNotFound": "NOT_FOUND",
        "SessionBusy": "ABORTED",
        "StaleSession": "ABORTED",
        "SlaUnattainable": "RESOURCE_EXHAUSTED",
        "ModelNotSupported": "FAILED_PRECONDITION",
        "OutOfCapacity": "RESOURCE_EXHAUSTED",
        "QuotaExceeded": "RESOURCE_EXHAUSTED",
        "RateExceeded": "RESOURCE_EXHAUSTED",
        "Unauthenticated": "UNAUTHENTICATED",
        "PermissionDenied": "PERMISSION_DENIED",
        "ReplicaLost": "UNAVAILABLE",
        "DeadlineExceeded": "DEADLINE_EXCEEDED",
        "RequestCancelled": "CANCELLED",
        "SessionCorrupt": "DATA_LOSS",
        "StoreUnavailable": "UNAVAILABLE",
        "EngineFailed": "UNAVAILABLE",
        "GatewayStopping": "UNAVAILABLE",
    }
    assert {cls.__name__: code.name for cls, code in STATUS_CODES.items()} == expected


def test_a_refusal_says_when_to_ask_again() -> None:
    sent = dict(trailing_metadata(SlaUnattainable("strict: wait", 1500.0, 1234.2)))
    assert sent["retry-after-ms"] == "1235"
    status = Status.FromString(cast(bytes, sent["grpc-status-details-bin"]))
    assert (status.code, status.message) == (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], "strict: wait")
    retry = RetryInfo()
    [detail] = status.details
    assert detail.Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1235


@pytest.mark.parametrize("error", [SlaUnattainable("never", 5.0), OutOfCapacity("full"), SwaaError("bug")])
def test_other_errors_say_nothing_of_the_kind(error: SwaaError) -> None:
    assert trailing_metadata(error) == ()


@asynchronous
async def test_an_rpc_ends_with_status_words_and_when_to_ask_again() -> None:
    context: Any = FakeContext()
    with pytest.raises(grpc.aio.AbortError):
        async with aborting(context):
            raise SlaUnattainable("strict: wait", 1500.0, 40.0)
    assert context.status == (grpc.StatusCode.RESOURCE_EXHAUSTED, "strict: wait")
    assert context.trailing["retry-after-ms"] == "40"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRecipe("window", 0, "must be above 0"), grpc.StatusCode.INVALID_ARGUMENT),
        (SessionExpired("late"), grpc.StatusCode.NOT_FOUND),
        (IntegrityError("a bug"), grpc.StatusCode.INTERNAL),
        (SwaaError("whatever"), grpc.StatusCode.INTERNAL),
    ],
)
def test_an_error_has_the_status_of_the_nearest_class_above(error: SwaaError, code: grpc.StatusCode) -> None:
    assert status_code(error) is code
