"""An archive reads back to the session it was made of, in whatever pieces; anything else is refused."""

from __future__ import annotations

import asyncio
import struct
import tracemalloc
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.errors import SessionCorrupt, StoreUnavailable
from services.sessions.archive import (
    LENGTH,
    MAGIC,
    MAX_MANIFEST_BYTES,
    distinct_segments,
    read_archive,
    write_archive,
)
from services.sessions.codec import encode_manifest, segment_id
from services.sessions.store import Manifest, SegmentRef
from swaa_runtime.kv_cache.slices import SliceKey

from .builders import Saved, asynchronous, make_session

SESSION = make_session(version=3)


async def written(saved: Saved) -> bytes:
    async def fetch(ref: SegmentRef) -> bytes:
        return bytes(saved.segments[ref.segment_id])

    return b"".join([piece async for piece in write_archive(saved.manifest, fetch)])


async def stream(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def read(pieces: Iterable[bytes]) -> tuple[Manifest, list[tuple[SegmentRef, bytes]]]:
    async def run() -> tuple[Manifest, list[tuple[SegmentRef, bytes]]]:
        manifest, segments = await read_archive(stream(pieces))
        return manifest, [segment async for segment in segments]

    return asyncio.run(run())


ARCHIVE = asyncio.run(written(SESSION))


def block(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def twin(saved: Saved) -> bytes:
    """The whole format at once."""
    blocks = [encode_manifest(saved.manifest)]
    for ref in saved.manifest.segments:
        data = bytes(saved.segments[ref.segment_id])
        if data not in blocks:
            blocks.append(data)
    body = MAGIC + b"".join(map(block, blocks))
    return body + bytes.fromhex(segment_id(body))


def with_segments_shared() -> Saved:
    """A session of which two parts have the same bytes."""
    ref = SESSION.manifest.segments[0]
    again = replace(ref, key=SliceKey((0, 1), 16, 32))
    segments = (ref, again, SESSION.manifest.segments[2])
    return replace(SESSION, manifest=replace(SESSION.manifest, segments=segments))


def without_segments() -> Saved:
    return Saved(replace(SESSION.manifest, segments=(), num_kv_tokens=0), {}, [])


@pytest.mark.parametrize("saved", [SESSION, with_segments_shared(), without_segments()], ids=["3", "2 of 3", "none"])
@asynchronous
async def test_it_reads_back(saved: Saved) -> None:
    archive = await written(saved)
    assert archive == twin(saved)
    manifest, segments = await read_archive(stream([archive]))
    assert manifest == saved.manifest
    assert [(ref, data) async for ref, data in segments] == [
        (ref, bytes(saved.segments[ref.segment_id])) for ref in distinct_segments(saved.manifest)
    ]


def test_segments_are_listed_once_where_they_first_come() -> None:
    first, _, last = with_segments_shared().manifest.segments
    assert distinct_segments(with_segments_shared().manifest) == [first, last]


@given(st.lists(st.integers(0, len(ARCHIVE)), max_size=20))
def test_it_may_be_cut_anywhere(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(ARCHIVE)]
    manifest, segments = read([ARCHIVE[low:high] for low, high in pairwise(edges)])
    assert manifest == SESSION.manifest
    assert len(segments) == 3


@given(st.integers(0, 8 * len(ARCHIVE) - 1))
def test_any_flipped_bit_is_noticed(bit: int) -> None:
    damaged = bytearray(ARCHIVE)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SessionCorrupt):
        read([bytes(damaged)])


@given(st.integers(0, len(ARCHIVE) - 1), st.binary(min_size=1, max_size=100))
def test_any_truncation_insertion_or_addition_is_noticed(at: int, more: bytes) -> None:
    assume(more != ARCHIVE[at:])
    for damaged in (
        [ARCHIVE[:at]],
        [ARCHIVE, more],
        [ARCHIVE, b"", more],
        [ARCHIVE[:at], more],
        [ARCHIVE[:at], more, ARCHIVE[at:]],
    ):
        with pytest.raises(SessionCorrupt):
            read(damaged)


@given(st.binary(max_size=200), st.booleans())
def test_anything_else_is_corrupt(data: bytes, with_magic: bool) -> None:
    with pytest.raises(SessionCorrupt):
        read([MAGIC * with_magic + data])


def resealed(blocks: list[bytes]) -> bytes:
    body = MAGIC + b"".join(map(block, blocks))
    return body + bytes.fromhex(segment_id(body))


def test_what_is_wrong_under_a_right_checksum_is_noticed() -> None:
    manifest, *segments = [encode_manifest(SESSION.manifest), *map(bytes, SESSION.segments.values())]
    assert resealed([manifest, *segments]) == ARCHIVE
    flipped = bytes([segments[0][0] ^ 1]) + segments[0][1:]
    for blocks in (
        [manifest, flipped, *segments[1:]],
        [manifest, segments[1], segments[0], segments[2]],
        [manifest, segments[0][:-1], *segments[1:]],
        [manifest, *segments[:-1]],
        [manifest, *segments, segments[0]],
        [manifest[:-1], *segments],
        [*segments],
        [],
    ):
        with pytest.raises(SessionCorrupt):
            read([resealed(blocks)])


@asynchronous
async def test_no_segment_is_given_out_before_it_is_checked() -> None:
    start = len(MAGIC) + 2 * LENGTH.size + len(encode_manifest(SESSION.manifest))
    damaged = bytearray(ARCHIVE)
    damaged[start + SESSION.manifest.segments[0].num_bytes + LENGTH.size] ^= 1  # the first byte of the second segment
    _, segments = await read_archive(stream([bytes(damaged)]))
    assert (await anext(segments))[0] == SESSION.manifest.segments[0]
    with pytest.raises(SessionCorrupt, match=SESSION.manifest.segments[1].segment_id):
        await anext(segments)


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield bytes(1 << 16)


@pytest.mark.parametrize("claimed", [MAX_MANIFEST_BYTES + 1, 2**63, 2**64 - 1])
@asynchronous
async def test_a_length_beyond_its_bound_is_refused_before_anything_is_read(claimed: int) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield MAGIC + struct.pack("<Q", claimed)
        async for piece in endless():
            yield piece

    tracemalloc.start()
    try:
        with pytest.raises(SessionCorrupt, match=str(claimed)):
            await read_archive(pieces())
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@asynchronous
async def test_what_cannot_be_fetched_ends_the_archive_before_its_digest() -> None:
    async def fetch(ref: SegmentRef) -> bytes:
        raise StoreUnavailable("gone")

    pieces = write_archive(SESSION.manifest, fetch)
    before = [await anext(pieces) for _ in range(3)]
    with pytest.raises(StoreUnavailable):
        await anext(pieces)
    _, segments = await read_archive(stream(before))
    with pytest.raises(SessionCorrupt, match="too early"):
        await anext(segments)
