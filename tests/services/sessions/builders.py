"""Sessions for tests: small, deterministic, and as the replica would save them."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from services.sessions.codec import segment_id
from services.sessions.kv_sizes import slice_shape
from services.sessions.slice_codec import encode_slice
from services.sessions.store import KVFormat, Manifest, SavedPrefix, SegmentRef
from swaa_runtime.kv_cache.slices import KVSlice, SliceKey, needed_slices
from swaa_runtime.recipe import Recipe
from swaa_runtime.shape import ModelShape
from swaa_runtime.visibility import Turn

NUM_KV_HEADS, HEAD_DIM, TOKENS_PER_TURN = 2, 4, 16

SHAPE = ModelShape(
    num_layers=4,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    vocab_size=1000,
    max_model_tokens=4096,
    dtype="bfloat16",
)


@dataclass(frozen=True, slots=True)
class Cached:
    """What one call of `save_prefix` takes."""

    prefix: SavedPrefix
    segments: dict[str, memoryview | bytes]


@dataclass(frozen=True, slots=True)
class Saved:
    """What one call of `save` takes, and the slices it was made from."""

    manifest: Manifest
    segments: dict[str, memoryview | bytes]
    slices: list[KVSlice]


def make_session(session_id: str = "chat", version: int = 1, seed: int = 0, layers: int = 2) -> Saved:
    """A session of `version` turns, whose earlier segments are those of its earlier versions.

    Each turn adds one segment of 16 tokens; the last token has no KV, so the last segment has 15 and is replaced by the
    next turn.
    """
    num_tokens = TOKENS_PER_TURN * version
    refs: list[SegmentRef] = []
    segments: dict[str, memoryview | bytes] = {}
    slices: list[KVSlice] = []
    for start in range(0, num_tokens, TOKENS_PER_TURN):
        stop = min(start + TOKENS_PER_TURN, num_tokens - 1)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + start * 1009 + stop)
        shape = (layers, 2, stop - start, NUM_KV_HEADS, HEAD_DIM)
        part = KVSlice(
            SliceKey(tuple(range(layers)), start, stop), torch.randn(shape, generator=generator).to(torch.bfloat16)
        )
        data = encode_slice(part)
        refs.append(SegmentRef(part.key, segment_id(data), len(data)))
        segments[refs[-1].segment_id] = data
        slices.append(part)
    manifest = Manifest(
        session_id=session_id,
        version=version,
        token_ids=tuple(range(seed, seed + num_tokens)),
        turns=tuple(Turn(at, at + 10, at + TOKENS_PER_TURN) for at in range(0, num_tokens, TOKENS_PER_TURN)),
        recipe=Recipe(window=8, sink_tokens=2, full_layers="1::2", full_decode=True),
        recipe_name="balanced",
        model_fingerprint="model-bf16",
        kv_format="raw",
        num_kv_tokens=num_tokens - 1,
        segments=tuple(refs),
        created_at_s=1.0,
        updated_at_s=1.0,
        expires_at_s=2.0,
        idempotency_key=f"key of {session_id}",
    )
    return Saved(manifest, segments, slices)


def make_state(kv_format: KVFormat = "raw", num_tokens: int = 600, seed: int = 0) -> Saved:
    """A session of the model of SHAPE that has all the parts which its recipe needs, and fits the model in all."""
    recipe = Recipe(window=40, sink_tokens=2, full_layers="1::2")
    generator = torch.Generator().manual_seed(seed)
    refs, segments, slices = [], {}, []
    for key in needed_slices(recipe.resolve(SHAPE.num_layers), num_tokens - 1, SHAPE.bytes_per_token_layer):
        shape = slice_shape(key, SHAPE.num_kv_heads, SHAPE.head_dim)
        slices.append(KVSlice(key, torch.randn(shape, generator=generator).to(torch.bfloat16)))
        data = bytes(encode_slice(slices[-1], kv_format))
        refs.append(SegmentRef(key, segment_id(data), len(data)))
        segments[refs[-1].segment_id] = data
    manifest = Manifest(
        session_id="state",
        version=2,
        token_ids=tuple(torch.randint(0, SHAPE.vocab_size, (num_tokens,), generator=generator).tolist()),
        turns=(Turn(0, 50, 60), Turn(60, num_tokens - 10, num_tokens)),
        recipe=recipe,
        recipe_name="interleaved",
        model_fingerprint="model-bf16",
        kv_format=kv_format,
        num_kv_tokens=num_tokens - 1,
        segments=tuple(refs),
        created_at_s=1.0,
        updated_at_s=2.0,
        expires_at_s=3.0,
    )
    return Saved(manifest, dict(segments), slices)


def make_manifest(session_id: str, version: int, segments: Mapping[str, bytes]) -> Manifest:
    """A manifest of two tokens that names just these segments, as parts of one layer each."""
    refs = (SegmentRef(SliceKey((at,), 0, 1), digest, len(data)) for at, (digest, data) in enumerate(segments.items()))
    return replace(
        make_session(session_id).manifest,
        version=version,
        token_ids=(1, 2),
        turns=(Turn(0, 1, 2),),
        num_kv_tokens=1,
        segments=tuple(refs),
    )


def make_prefix(seed: int = 0, version: int = 1, layers: int = 2) -> Cached:
    """The KV state of `make_session`'s session of that seed and version, as a prefix: they share their segments."""
    saved = make_session(version=version, seed=seed, layers=layers)
    prefix_id = hashlib.sha256(f"{seed} {version} {layers}".encode()).hexdigest()
    return Cached(SavedPrefix(prefix_id, saved.manifest.num_kv_tokens, saved.manifest.segments), saved.segments)


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a test of a coroutine function: it runs in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run
