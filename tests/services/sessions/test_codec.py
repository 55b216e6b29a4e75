"""The codec reads back what it wrote, and refuses everything else."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from services.errors import SessionCorrupt
from services.pb.swaa.v1 import session_state_pb2 as pb
from services.sessions.codec import FORMAT, decode_manifest, encode_manifest, segment_id
from services.sessions.slice_codec import decode_slice, encode_slice
from services.sessions.store import Manifest, SegmentRef
from swaa_runtime.errors import IntegrityError
from swaa_runtime.kv_cache.slices import KVSlice, SliceKey
from swaa_runtime.recipe import Recipe
from swaa_runtime.visibility import Turn

from .builders import HEAD_DIM, NUM_KV_HEADS, make_session

recipes = st.builds(
    Recipe,
    window=st.none() | st.integers(1, 2**31 - 1),
    sink_tokens=st.integers(0, 100),
    full_layers=st.sampled_from(["", "1::2", (), (0, 3)]),
    lookback_layers=st.sampled_from([None, "::4", (1,)]),
    full_decode=st.booleans(),
    full_tail=st.integers(0, 100),
    thinking=st.booleans(),
    adapter=st.none() | st.text(min_size=1),
)
times = st.floats(0, 1e12)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    lengths = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)).filter(any), max_size=4))
    stops = list(accumulate((sum(pair) for pair in lengths), initial=0))
    turns = tuple(
        Turn(start, start + prompt, stop) for (start, stop), (prompt, _) in zip(pairwise(stops), lengths, strict=True)
    )
    num_kv_tokens = draw(st.integers(0, stops[-1]))
    refs = []
    for layer in range(draw(st.integers(0, 3)) if num_kv_tokens else 0):
        start = draw(st.integers(0, num_kv_tokens - 1))
        key = SliceKey((layer, layer + 7), start, draw(st.integers(start + 1, num_kv_tokens)))
        refs.append(SegmentRef(key, segment_id(bytes([layer])), draw(st.integers(1, 2**40))))
    return Manifest(
        session_id=draw(st.text()),
        version=draw(st.integers(1, 2**53)),
        token_ids=tuple(draw(st.lists(st.integers(0, 2**32 - 1), min_size=stops[-1], max_size=stops[-1]))),
        turns=turns,
        recipe=draw(recipes),
        recipe_name=draw(st.text()),
        model_fingerprint=draw(st.text()),
        kv_format=draw(st.sampled_from(["raw", "zstd", "int8", "fp8"])),
        num_kv_tokens=num_kv_tokens,
        segments=tuple(refs),
        created_at_s=draw(times),
        updated_at_s=draw(times),
        expires_at_s=draw(times),
        idempotency_key=draw(st.text()),
    )


@given(manifests())
def test_manifest_round_trip(manifest: Manifest) -> None:
    assert decode_manifest(encode_manifest(manifest)) == manifest


@given(st.data())
def test_any_flipped_bit_is_noticed(data: st.DataObject) -> None:
    encoded = bytearray(encode_manifest(make_session(version=2).manifest))
    bit = data.draw(st.integers(0, 8 * len(encoded) - 1))
    encoded[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SessionCorrupt):
        decode_manifest(bytes(encoded))


@given(st.data())
def test_any_truncation_or_addition_is_noticed(data: st.DataObject) -> None:
    encoded = encode_manifest(make_session().manifest)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    for damaged in (encoded[:cut], encoded + encoded[cut:]):
        with pytest.raises(SessionCorrupt):
            decode_manifest(damaged)


@given(st.binary(max_size=200))
def test_anything_else_is_corrupt(data: bytes) -> None:
    with pytest.raises(SessionCorrupt):
        decode_manifest(data)


@given(st.binary(max_size=200))
def test_any_payload_under_a_right_checksum_is_corrupt_or_consistent(payload: bytes) -> None:
    """The checksum is no proof of origin: what is behind it is not trusted either."""
    try:
        manifest = decode_manifest(sealed(payload))
    except SessionCorrupt:
        return
    assert decode_manifest(encode_manifest(manifest)) == manifest


def sealed(payload: bytes) -> bytes:
    return FORMAT + bytes.fromhex(segment_id(payload)) + payload


def state() -> pb.SessionState:
    return pb.SessionState.FromString(encode_manifest(make_session().manifest)[len(FORMAT) + 16 :])


def test_contradictions_under_a_right_checksum_are_corrupt() -> None:
    decode_manifest(sealed(state().SerializeToString()))
    damaged = [state() for _ in range(13)]
    damaged[0].token_ids.append(1)
    damaged[1].turns[0].prompt_tokens = 2**32 - 1
    damaged[2].num_kv_tokens = 17
    damaged[3].segments[0].stop = 2**32 - 1
    damaged[4].segments[0].id = b"short"
    damaged[5].segments[0].layers[:] = [1, 0]
    damaged[6].segments[0].num_bytes = 0
    damaged[7].segments.append(damaged[7].segments[0])
    damaged[8].recipe_json = '{"windows": 3}'
    damaged[9].recipe_json = "[" * 100_000
    damaged[10].expires_at_s = math.nan
    damaged[11].version = 0
    damaged[12].turns.add()
    for message in damaged:
        with pytest.raises(SessionCorrupt):
            decode_manifest(sealed(message.SerializeToString()))


@pytest.mark.parametrize(
    "change",
    [
        {"turns": (Turn(0, 10),)},
        {"turns": (Turn(0, 8, 8), Turn(9, 10, 16))},
        {"num_kv_tokens": 17},
        {"version": 0},
        {"token_ids": (-1,) * 16},
        {"updated_at_s": math.inf},
        {"segments": (SegmentRef(SliceKey((0,), 0, 4), "../etc", 4),)},
    ],
)
def test_writing_a_contradiction_is_a_bug(change: dict[str, object]) -> None:
    with pytest.raises(IntegrityError):
        encode_manifest(replace(make_session().manifest, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_slice_round_trip(dtype: torch.dtype) -> None:
    part = KVSlice(SliceKey((0, 3), 5, 9), torch.randn(2, 2, 4, NUM_KV_HEADS, HEAD_DIM).to(dtype))
    data = bytes(encode_slice(part))
    ref = SegmentRef(part.key, segment_id(data), len(data))

    back = decode_slice(ref, data, NUM_KV_HEADS, HEAD_DIM, dtype)

    assert back.key == part.key
    assert back.data.dtype == dtype
    torch.testing.assert_close(back.data, part.data, rtol=0, atol=0)
    first = np.frombuffer(data, np.uint8).ctypes.data
    assert back.data.data_ptr() == first, "raw KV is not copied"


def test_a_contiguous_slice_is_encoded_without_a_copy() -> None:
    data = torch.zeros(1, 2, 4, NUM_KV_HEADS, HEAD_DIM)
    view = encode_slice(KVSlice(SliceKey((0,), 0, 4), data))
    data.fill_(1.0)
    assert isinstance(view, memoryview)
    assert view.nbytes == len(view) == data.nbytes
    assert bytes(view[:4]) == b"\x00\x00\x80\x3f"


def test_a_slice_that_is_not_contiguous_is_encoded_in_order() -> None:
    data = torch.arange(2 * 2 * 8 * NUM_KV_HEADS * HEAD_DIM, dtype=torch.float32).view(2, 2, 8, NUM_KV_HEADS, HEAD_DIM)
    part = KVSlice(SliceKey((0, 1), 2, 6), data[:, :, 2:6])
    encoded = bytes(encode_slice(part))
    ref = SegmentRef(part.key, segment_id(encoded), len(encoded))
    assert torch.equal(decode_slice(ref, encoded, NUM_KV_HEADS, HEAD_DIM, torch.float32).data, data[:, :, 2:6])


@given(st.integers(0, 200), st.integers(1, 4), st.integers(1, 8))
def test_a_slice_of_another_size_is_corrupt(num_bytes: int, num_kv_heads: int, head_dim: int) -> None:
    assume(num_bytes != 2 * 3 * num_kv_heads * head_dim * 2)
    ref = SegmentRef(SliceKey((0,), 0, 3), "0" * 32, num_bytes)
    with pytest.raises(SessionCorrupt, match="0" * 32):
        decode_slice(ref, bytes(num_bytes), num_kv_heads, head_dim, torch.bfloat16)


def test_a_slice_of_absurd_size_allocates_nothing() -> None:
    ref = SegmentRef(SliceKey(tuple(range(1000)), 0, 2**32 - 1), "0" * 32, 16)
    with pytest.raises(SessionCorrupt):
        decode_slice(ref, bytes(16), 2**20, 2**20, torch.bfloat16)
