"""A session as one file, to go on with elsewhere. Written and read piece by piece; in memory is one segment at a time.

    | magic "SWAASESS" | format version, 1 byte | manifest | segments | BLAKE3-128 of all that is before it, 16 bytes |

The manifest, as `codec.encode_manifest` writes it, and each distinct segment, in the manifest's order, are blocks: a
length in bytes, 8 bytes little-endian, and so many bytes. Data only: nothing here can make the reader run code.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable

from blake3 import blake3

from services.errors import SessionCorrupt
from services.sessions.check import check_bytes
from services.sessions.codec import DIGEST_BYTES, decode_manifest, encode_manifest
from services.sessions.store import Manifest, SegmentRef

MAGIC = b"SWAASESS\x02"
"""Magic and format version. A reader refuses every version but its own."""

MAX_MANIFEST_BYTES = 8 << 20
"""Of a manifest in an archive: over two million tokens. Read, it takes some twenty times as much memory."""

LENGTH = struct.Struct("<Q")


def distinct_segments(manifest: Manifest) -> list[SegmentRef]:
    """One reference to each of the manifest's segments, in its order: what an archive of it holds."""
    return list({ref.segment_id: ref for ref in reversed(manifest.segments)}.values())[::-1]


async def write_archive(
    manifest: Manifest, fetch: Callable[[SegmentRef], Awaitable[bytes]]
) -> AsyncGenerator[bytes, None]:
    """The archive's bytes, in pieces of any size up to a segment's.

    Args:
        fetch: reads a segment, checked against its digest. What it raises ends the archive before its digest.

    Raises:
        IntegrityError: if the manifest contradicts itself.
    """
    digest = blake3()
    encoded = encode_manifest(manifest)
    for piece in (MAGIC, LENGTH.pack(len(encoded)), encoded):
        digest.update(piece)
        yield piece
    for ref in distinct_segments(manifest):
        for piece in (LENGTH.pack(ref.num_bytes), await fetch(ref)):
            digest.update(piece)
            yield piece
    yield digest.digest(DIGEST_BYTES)


async def read_archive(
    pieces: AsyncIterable[bytes],
) -> tuple[Manifest, AsyncIterator[tuple[SegmentRef, bytes]]]:
    """An archive's manifest, and its segments, each checked against its digest.

    Whether the archive is whole shows only at the end of its segments: keep nothing of it if they raise. The manifest
    says how large they are; whoever does not want as much stops there.

    Raises:
        SessionCorrupt: here or while the segments are read, for anything that `write_archive` does not write.
    """
    source = _Source(pieces)
    if await source.take(len(MAGIC)) != MAGIC:
        raise SessionCorrupt("archive is not of the format this version reads")
    (num_bytes,) = LENGTH.unpack(await source.take(LENGTH.size))
    if num_bytes > MAX_MANIFEST_BYTES:
        raise SessionCorrupt(f"archive has a manifest of {num_bytes} bytes, more than {MAX_MANIFEST_BYTES}")
    manifest = decode_manifest(await source.take(num_bytes))
    return manifest, _read_segments(manifest, source)


async def _read_segments(manifest: Manifest, source: _Source) -> AsyncIterator[tuple[SegmentRef, bytes]]:
    for ref in distinct_segments(manifest):
        (num_bytes,) = LENGTH.unpack(await source.take(LENGTH.size))
        if num_bytes != ref.num_bytes:
            raise SessionCorrupt(f"archive has {num_bytes} bytes for segment {ref.segment_id} of {ref.num_bytes}")
        data = await source.take(num_bytes)
        check_bytes(ref, data)
        yield ref, data
    digest = source.digest.digest(DIGEST_BYTES)
    if await source.take(DIGEST_BYTES) != digest:
        raise SessionCorrupt("archive fails its checksum")
    if not await source.at_end():
        raise SessionCorrupt("archive goes on after its end")


class _Source:
    """Pieces of any size as a stream of bytes. `digest` is that of all bytes taken so far."""

    def __init__(self, pieces: AsyncIterable[bytes]) -> None:
        self.digest = blake3()
        self._pieces = aiter(pieces)
        self._buffer = bytearray()

    async def take(self, num_bytes: int) -> bytes:
        """Exactly so many bytes. Raises SessionCorrupt if there are fewer."""
        while len(self._buffer) < num_bytes:
            piece = await anext(self._pieces, None)
            if piece is None:
                raise SessionCorrupt(f"archive ends {num_bytes - len(self._buffer)} bytes too early")
            self._buffer += piece
        data = bytes(self._buffer[:num_bytes])
        del self._buffer[:num_bytes]
        self.digest.update(data)
        return data

    async def at_end(self) -> bool:
        """Whether no bytes are left."""
        while not self._buffer:
            piece = await anext(self._pieces, None)
            if piece is None:
                return True
            self._buffer += piece
        return False
