"""What is written of a prefix is read back, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.errors import SessionCorrupt
from services.sessions.codec import encode_manifest, frame
from services.sessions.prefix_codec import decode_prefix, encode_prefix
from services.sessions.store import SavedPrefix, SegmentRef
from swaa_runtime.errors import IntegrityError
from swaa_runtime.kv_cache.slices import SliceKey

from .builders import make_prefix, make_session

PREFIX = make_prefix(version=3).prefix


@st.composite
def prefixes(draw: st.DrawFn) -> SavedPrefix:
    num_tokens = draw(st.integers(1, 1 << 20))
    digests = st.binary(min_size=16, max_size=16).map(bytes.hex)
    digests_and_sizes = draw(st.dictionaries(digests, st.integers(1, 1 << 40), max_size=5))
    refs = tuple(
        SegmentRef(SliceKey((layer, layer + 1), 0, num_tokens), digest, num_bytes)
        for layer, (digest, num_bytes) in enumerate(digests_and_sizes.items())
    )
    return SavedPrefix(draw(st.text(max_size=64)), num_tokens, refs)


@given(prefixes())
def test_a_prefix_comes_back_equal(prefix: SavedPrefix) -> None:
    assert decode_prefix(encode_prefix(prefix)) == prefix


@given(st.data())
def test_any_changed_byte_is_noticed(data: st.DataObject) -> None:
    good = encode_prefix(PREFIX)
    at, flip = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(1, 255))
    with pytest.raises(SessionCorrupt):
        decode_prefix(good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :])
    with pytest.raises(SessionCorrupt):
        decode_prefix(good[:at])


@given(st.binary())
def test_other_bytes_are_no_prefix(payload: bytes) -> None:
    for data in (payload, frame(payload + b"\xff")):
        with pytest.raises(SessionCorrupt, match="prefix"):
            decode_prefix(data)


def test_a_manifest_is_no_prefix() -> None:
    with pytest.raises(SessionCorrupt, match="prefix"):
        decode_prefix(encode_manifest(make_session().manifest))


@pytest.mark.parametrize(
    "wrong",
    [
        replace(PREFIX, num_tokens=0, segments=()),
        replace(PREFIX, num_tokens=PREFIX.num_tokens - 1),
        replace(PREFIX, segments=PREFIX.segments + PREFIX.segments[:1]),
        replace(PREFIX, segments=(replace(PREFIX.segments[0], segment_id="xyz"),)),
        replace(PREFIX, num_tokens=1 << 40),
    ],
)
def test_a_prefix_that_contradicts_itself_is_not_written(wrong: SavedPrefix) -> None:
    with pytest.raises(IntegrityError, match=wrong.prefix_id):
        encode_prefix(wrong)
