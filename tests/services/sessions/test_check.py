"""A session that fits its model passes; one that does not is refused, and the reason names what is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest

from services.errors import SessionCorrupt
from services.sessions.check import check_bytes, check_segments, check_tokens
from services.sessions.store import KVFormat
from swaa_runtime.recipe import Recipe

from .builders import SHAPE, make_state


@pytest.mark.parametrize("kv_format", get_args(KVFormat))
@pytest.mark.parametrize("num_tokens", [70, 257, 600])
def test_what_was_saved_passes(kv_format: KVFormat, num_tokens: int) -> None:
    saved = make_state(kv_format, num_tokens)
    check_tokens(saved.manifest, SHAPE)
    check_segments(saved.manifest, SHAPE)
    for ref in saved.manifest.segments:
        check_bytes(ref, saved.segments[ref.segment_id])


def test_a_session_of_tokens_only_passes() -> None:
    manifest = replace(make_state().manifest, num_kv_tokens=0, segments=())
    check_tokens(manifest, SHAPE)
    check_segments(manifest, SHAPE)
    check_tokens(replace(manifest, token_ids=(), turns=()), SHAPE)


def test_the_first_token_beyond_the_vocabulary_is_one_too_many() -> None:
    manifest = make_state().manifest
    check_tokens(replace(manifest, token_ids=(999, *manifest.token_ids[1:])), SHAPE)
    with pytest.raises(SessionCorrupt, match="session state: token 1000 of a vocabulary of 1000"):
        check_tokens(replace(manifest, token_ids=(1000, *manifest.token_ids[1:])), SHAPE)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipe": Recipe()}, "not those its recipe needs"),
        ({"recipe": Recipe(window=40, full_layers=(4,))}, "not for this model: full_layers is 4"),
        ({"recipe": Recipe(window=40, full_layers="9::2")}, "not for this model: full_layers is '9::2'"),
        ({"num_kv_tokens": 598}, "not those its recipe needs"),
        ({"segments": ()}, "not those its recipe needs"),
        ({"segments": make_state().manifest.segments[::-1]}, "not those its recipe needs"),
        ({"kv_format": "int8"}, "bytes, expected"),
    ],
)
def test_a_state_of_other_parts_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SessionCorrupt, match=f"session state: .*{said}"):
        check_segments(replace(make_state().manifest, **changes), SHAPE)


@pytest.mark.parametrize("changes", [{"num_layers": 5}, {"num_kv_heads": 2}, {"head_dim": 16}, {"dtype": "float32"}])
def test_a_state_of_another_model_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SessionCorrupt):
        check_segments(make_state().manifest, replace(SHAPE, **changes))


@pytest.mark.parametrize("kv_format", get_args(KVFormat))
def test_a_segment_of_another_size_is_refused(kv_format: KVFormat) -> None:
    manifest = make_state(kv_format).manifest
    first, *rest = manifest.segments
    raw_bytes = make_state("raw").manifest.segments[0].num_bytes
    sizes = [2**40] if kv_format == "zstd" else [first.num_bytes - 1, first.num_bytes + 1, 2**40]
    for num_bytes in sizes:
        damaged = replace(manifest, segments=(replace(first, num_bytes=num_bytes), *rest))
        with pytest.raises(SessionCorrupt, match=f"of {num_bytes} bytes, expected"):
            check_segments(damaged, SHAPE)
    if kv_format == "zstd":
        check_segments(replace(manifest, segments=(replace(first, num_bytes=raw_bytes), *rest)), SHAPE)


def test_other_bytes_are_refused() -> None:
    saved = make_state()
    ref = saved.manifest.segments[0]
    data = bytes(saved.segments[ref.segment_id])
    for damaged in (data[:-1], data + b"\0", bytes([data[0] ^ 1]) + data[1:], b""):
        with pytest.raises(SessionCorrupt, match=ref.segment_id):
            check_bytes(ref, damaged)
