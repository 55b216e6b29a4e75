"""Every error of ours has the status that the proto promises."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

import services.sessions.embedded_redis  # noqa: F401 - its errors are part of the tree
from services.errors import SessionExpired
from services.gateway.errors import STATUS_CODES, status_code
from swaa_runtime.errors import IntegrityError, InvalidRecipe, InvalidRequest, SwaaError

# What is not one of ours to explain to a client: bugs, and errors that no RPC can raise.
INTERNAL = {"IntegrityError", "DemoFailed", "ClusterFailed"}


def subclasses(cls: type[SwaaError]) -> Iterator[type[SwaaError]]:
    for child in cls.__subclasses__():
        yield child
        yield from subclasses(child)


def make(cls: type[SwaaError]) -> SwaaError:
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
        "SlaUnattainable": "FAILED_PRECONDITION",
        "ModelNotSupported": "FAILED_PRECONDITION",
        "OutOfCapacity": "RESOURCE_EXHAUSTED",
        "QuotaExceeded": "RESOURCE_EXHAUSTED",
        "ReplicaLost": "UNAVAILABLE",
        "DeadlineExceeded": "DEADLINE_EXCEEDED",
        "RequestCancelled": "CANCELLED",
        "SessionCorrupt": "DATA_LOSS",
        "StoreUnavailable": "UNAVAILABLE",
        "EngineFailed": "UNAVAILABLE",
        "GatewayStopping": "UNAVAILABLE",
    }
    assert {cls.__name__: code.name for cls, code in STATUS_CODES.items()} == expected


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
