"""Whether a session that reads well also fits a model: asked before memory is taken for any of it. Pure.

decode_manifest ─▶ check_tokens ─▶ check_segments ─▶ [fetch] ─▶ check_bytes ─▶ decode_slice

A session that fails `check_tokens` is lost; what fails later is recomputed from its tokens. A manifest's checksum finds
accidents; who can write a manifest can also recompute it. Then these checks bound what it can do: it is a state of this
model's shape, of as many bytes as such a state has.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.errors import SessionCorrupt
from services.sessions.codec import segment_id
from services.sessions.kv_sizes import slice_shape, stored_bytes
from services.sessions.store import KVFormat, Manifest, SegmentRef
from swaa_runtime.errors import InvalidRecipe
from swaa_runtime.kv_cache.slices import needed_slices
from swaa_runtime.recipe import LayerRule
from swaa_runtime.shape import DTYPE_BYTES, ModelShape


def check_tokens(manifest: Manifest, shape: ModelShape) -> None:
    """Raise SessionCorrupt if the model has no such tokens."""
    highest = max(manifest.token_ids, default=0)
    if highest >= shape.vocab_size:
        raise SessionCorrupt(f"session {manifest.session_id}: token {highest} of a vocabulary of {shape.vocab_size}")


def check_segments(manifest: Manifest, shape: ModelShape) -> None:
    """Raise SessionCorrupt unless the manifest names just the parts that its recipe needs, each of the right size."""
    try:
        rules = manifest.recipe.resolve(shape.num_layers)
    except InvalidRecipe as exc:
        raise SessionCorrupt(f"session {manifest.session_id}: its recipe is not for this model: {exc}") from exc
    try:
        check_state(rules, manifest.num_kv_tokens, manifest.segments, manifest.kv_format, shape)
    except SessionCorrupt as exc:
        raise SessionCorrupt(f"session {manifest.session_id}: {exc}") from exc


def check_state(
    rules: Sequence[LayerRule],
    num_tokens: int,
    segments: Sequence[SegmentRef],
    kv_format: KVFormat,
    shape: ModelShape,
) -> None:
    """Raise SessionCorrupt unless these are the segments of a state of so many tokens, each of the right size."""
    if [ref.key for ref in segments] != needed_slices(rules, num_tokens, shape.bytes_per_token_layer):
        raise SessionCorrupt("its segments are not those its recipe needs")
    for ref in segments:
        sizes = slice_shape(ref.key, shape.num_kv_heads, shape.head_dim)
        most = stored_bytes(sizes, DTYPE_BYTES[shape.dtype], kv_format)
        if ref.num_bytes > most or (ref.num_bytes < most and kv_format != "zstd"):
            raise SessionCorrupt(f"segment {ref.segment_id} of {ref.num_bytes} bytes, expected {most}")


def check_bytes(ref: SegmentRef, data: bytes | memoryview) -> None:
    """Raise SessionCorrupt unless these are the very bytes that were saved."""
    if len(data) != ref.num_bytes or segment_id(data) != ref.segment_id:
        raise SessionCorrupt(f"segment {ref.segment_id} is not what was saved")
