"""A process that saves and may be killed at any moment: what `test_redis_crashes` starts 200 times."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

from services.sessions import redis_segments
from services.sessions.codec import segment_id
from services.sessions.redis_segments import RedisSegments
from services.sessions.redis_store import RedisSessionStore

from .builders import make_manifest

SEGMENT_BYTES = 50_000
NUM_SEGMENTS, NUM_NEW_SEGMENTS = 8, 4


def segments_of(session_id: str, version: int) -> dict[str, bytes]:
    """The segments of a session's turn: half are those of the turn before, half are new."""
    first = version * NUM_NEW_SEGMENTS
    blobs = [random.Random(f"{session_id} {first + at}").randbytes(SEGMENT_BYTES) for at in range(NUM_SEGMENTS)]
    return {segment_id(blob): blob for blob in blobs}


def save(url: str, session_id: str, version: int, ready: Connection, deadly_uploads: int | None = None) -> None:
    """Save a turn; say when it begins, and how many seconds it took.

    Args:
        deadly_uploads: die after so many batches were uploaded.
    """
    redis_segments.BATCH_BYTES = SEGMENT_BYTES  # every segment in a round trip of its own
    if deadly_uploads is not None:
        die_in_upload(deadly_uploads)
    asyncio.run(_save(url, session_id, version, ready))


def die_in_upload(num_batches: int) -> None:
    """Have this process killed once it has uploaded so many batches of a save."""
    upload = RedisSegments.upload

    async def upload_some(self: RedisSegments, keys: Any, segments: dict[str, bytes], use_s: float) -> None:
        await upload(self, keys, dict(list(segments.items())[:num_batches]), use_s)
        os.kill(os.getpid(), signal.SIGKILL)

    RedisSegments.upload = upload_some  # type: ignore[assignment, method-assign]


async def _save(url: str, session_id: str, version: int, ready: Connection) -> None:
    store = RedisSessionStore.from_url(url, 3600.0)
    segments = segments_of(session_id, version)
    manifest = make_manifest(session_id, version, segments)
    await store.ping()
    ready.send_bytes(b"")
    begin_s = time.monotonic()
    await store.save("acme", manifest, segments, version - 1)
    ready.send(time.monotonic() - begin_s)
    await store.close()
