"""Errors survive the hop between our processes: class and words; anything else is a lost replica."""

from __future__ import annotations

import pytest

from services.errors import ReplicaLost, SessionExpired, StaleSession, StoreUnavailable
from services.wire_errors import ERROR_KEY, error_from, error_metadata
from swaa_runtime.errors import EngineFailed, InvalidRecipe, InvalidRequest, OutOfCapacity, SwaaError


@pytest.mark.parametrize(
    "error",
    [
        StaleSession("moved 'on'"),
        SessionExpired("at noon\n"),
        StoreUnavailable("Füllstand 100 %"),
        EngineFailed(""),
        OutOfCapacity("full"),
        SwaaError("whatever"),
        InvalidRequest("prompt", 7, "must be below 5"),
        InvalidRequest("x-swaa-session", "a" * 500, "is too long"),
        InvalidRecipe("full_layers", (1, 2), "out of range"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_comes_back_as_it_was(error: SwaaError) -> None:
    back = error_from(error_metadata(error), "gone")
    assert type(back) is type(error)
    if not isinstance(error, InvalidRecipe):  # its value is told in words
        assert str(back) == str(error)
    assert error.args[0].split(" is ")[0] in str(back)


def test_without_words_of_ours_the_replica_is_lost() -> None:
    for metadata in (None, (), (("content-type", "application/grpc"),)):
        lost = error_from(metadata, "connection reset")
        assert type(lost) is ReplicaLost
        assert "connection reset" in str(lost)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b'["OSError", ["x"]]',
        b'["Sequence", ["x"]]',
        b'["StaleSession", []]',
        b'["InvalidRequest", ["only one"]]',
        b"3",
    ],
)
def test_what_is_no_error_of_ours_makes_none(data: bytes) -> None:
    assert type(error_from([(ERROR_KEY, data)], "gone")) is ReplicaLost
