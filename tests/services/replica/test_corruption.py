"""A damaged session answers with the tokens that the whole one would: its history is recomputed, and that is said."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import redis

from services.errors import SessionCorrupt
from services.sessions.codec import encode_manifest
from services.sessions.store import Manifest, SegmentRef
from tests.swaa_runtime.builders import VOCAB_SIZE, random_tokens

from .builders import NEW, SESSION, TENANT, asynchronous, make_job, make_replica, next_use, run_turn, running_engine
from .conftest import OpenStore

pytestmark = pytest.mark.redis

SESSION_KEY = f"swaa:{{{TENANT}}}:session:{SESSION}"
ROUNDS = 4

Change = Callable[[random.Random, list[bytes]], list[bytes]]


def at_one(damage: Callable[[random.Random, bytes], bytes]) -> Change:
    def change(rng: random.Random, blobs: list[bytes]) -> list[bytes]:
        at = rng.randrange(len(blobs))
        return [*blobs[:at], damage(rng, blobs[at]), *blobs[at + 1 :]]

    return change


def flip(rng: random.Random, blob: bytes) -> bytes:
    bit = rng.randrange(8 * len(blob))
    damaged = bytearray(blob)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


SEGMENT_DAMAGE: dict[str, Change] = {
    "flipped": at_one(flip),
    "cut": at_one(lambda rng, blob: blob[: rng.randrange(len(blob))]),
    "extended": at_one(lambda rng, blob: blob + rng.randbytes(5)),
    "rotated": lambda rng, blobs: [*blobs[1:], blobs[0]],
}


def with_segment(manifest: Manifest, **changes: object) -> Manifest:
    first, *rest = manifest.segments
    changed: SegmentRef = replace(first, **changes)  # type: ignore[arg-type]
    return replace(manifest, segments=(changed, *rest))


FORGERIES: dict[str, Callable[[Manifest], Manifest]] = {
    "one too few": lambda manifest: replace(manifest, segments=manifest.segments[1:]),
    "two exchanged": lambda manifest: replace(manifest, segments=manifest.segments[::-1]),
    "huge": lambda manifest: with_segment(manifest, num_bytes=2**40),
    "of other layers": lambda manifest: with_segment(manifest, key=replace(manifest.segments[0].key, layers=(7,))),
    "unknown": lambda manifest: with_segment(manifest, segment_id="0" * 32),
    "of another format": lambda manifest: replace(manifest, kv_format="zstd"),
    "of more tokens": lambda manifest: replace(manifest, num_kv_tokens=manifest.num_kv_tokens + 1),
}


@asynchronous
async def test_the_answer_is_the_same_whatever_is_damaged(open_store: OpenStore, raw: redis.Redis) -> None:
    rng = random.Random(0)
    async with running_engine() as rig, open_store() as store:
        replica = make_replica(rig, store)
        await run_turn(replica, make_job(300, NEW))
        manifest = await store.get(TENANT, SESSION)
        names = [f"swaa:{{{TENANT}}}:segment:{ref.segment_id}" for ref in manifest.segments]
        blobs = await store.fetch(TENANT, manifest.segments)
        assert len(set(names)) > 2
        stored = {key: raw.dump(key) for key in raw.scan_iter()}

        async def answer() -> tuple[list[int], str]:
            await rig.forget()
            ran = await run_turn(replica, make_job(random_tokens(11, seed=1), await next_use(store)))
            assert ran.done.session is not None
            raw.flushall()
            for key, value in stored.items():
                raw.restore(key, 0, value)  # type: ignore[arg-type]
            return ran.tokens, ran.done.session.history

        expected, how = await answer()
        assert how == "restored"
        for kind, change in SEGMENT_DAMAGE.items():
            for _ in range(ROUNDS):
                raw.mset(dict(zip(names, change(rng, blobs), strict=True)))
                tokens, how = await answer()
                assert (tokens, how[:12]) == (expected, "recomputed: "), kind
        for kind, forge in FORGERIES.items():
            raw.hset(SESSION_KEY, "data", encode_manifest(forge(manifest)))
            tokens, how = await answer()
            assert (tokens, how[:12]) == (expected, "recomputed: "), kind
        assert await answer() == (expected, "restored")


@asynchronous
async def test_tokens_that_the_model_does_not_have_are_not_recomputed(open_store: OpenStore, raw: redis.Redis) -> None:
    async with running_engine() as rig, open_store() as store:
        replica = make_replica(rig, store)
        await run_turn(replica, make_job(20, NEW))
        manifest = await store.get(TENANT, SESSION)
        forged = replace(manifest, token_ids=(VOCAB_SIZE, *manifest.token_ids[1:]))
        raw.hset(SESSION_KEY, "data", encode_manifest(forged))
        with pytest.raises(SessionCorrupt, match=f"token {VOCAB_SIZE} of a vocabulary of {VOCAB_SIZE}"):
            await run_turn(replica, make_job(5, await next_use(store)))
        assert await rig.used_blocks() == 0
