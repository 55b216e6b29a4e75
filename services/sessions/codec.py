"""Bytes of a session: its manifest, and the segments of its KV state. Pure; knows nothing of Redis.

A manifest is stored as

    | magic "SWAA" | format version, 1 byte | BLAKE3-128 of all that follows, 16 bytes | protobuf SessionState |

A segment is one KV slice in the manifest's format (`kv_format`) and nothing else: its address is the digest of its
bytes, and its shape follows from the manifest. Data only: nothing here can make the reader run code.
"""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import cast, get_args

from blake3 import blake3
from google.protobuf.message import DecodeError

from services.errors import SessionCorrupt
from services.pb.swaa.v1 import session_state_pb2 as pb
from services.sessions.store import KVFormat, Manifest, SegmentRef
from swaa_runtime.errors import IntegrityError, InvalidRecipe
from swaa_runtime.kv_cache.slices import SliceKey
from swaa_runtime.recipe import Recipe
from swaa_runtime.visibility import Turn

DIGEST_BYTES = 16
FORMAT = b"SWAA\x02"
"""Magic and format version. A reader refuses every version but its own; old sessions are then recomputed or expire."""


def encode_manifest(manifest: Manifest) -> bytes:
    """Bytes that `decode_manifest` reads back to an equal manifest. Raises IntegrityError if it contradicts itself."""
    if flaw := _flaw(manifest):
        raise IntegrityError(f"manifest of session {manifest.session_id!r}: {flaw}")
    try:
        state = pb.SessionState(
            session_id=manifest.session_id,
            version=manifest.version,
            token_ids=manifest.token_ids,
            turns=[_encode_turn(turn) for turn in manifest.turns],
            recipe_json=json.dumps(manifest.recipe.to_mapping(), sort_keys=True),
            recipe_name=manifest.recipe_name,
            model_fingerprint=manifest.model_fingerprint,
            kv_format=manifest.kv_format,
            num_kv_tokens=manifest.num_kv_tokens,
            segments=[encode_ref(ref) for ref in manifest.segments],
            created_at_s=manifest.created_at_s,
            updated_at_s=manifest.updated_at_s,
            expires_at_s=manifest.expires_at_s,
            idempotency_key=manifest.idempotency_key,
        )
    except ValueError as exc:  # a number that its field cannot hold
        raise IntegrityError(f"manifest of session {manifest.session_id!r}: {exc}") from exc
    payload = state.SerializeToString(deterministic=True)
    return frame(payload)


def decode_manifest(data: bytes) -> Manifest:
    """Read what `encode_manifest` wrote. Raises SessionCorrupt for anything else, before it trusts any of it."""
    payload = unframe(data, "manifest")
    try:
        state = pb.SessionState.FromString(payload)
        recipe = Recipe.from_mapping(_json_object(state.recipe_json))
    except (DecodeError, InvalidRecipe, ValueError, RecursionError) as exc:
        raise SessionCorrupt(f"manifest cannot be read: {exc}") from exc
    manifest = Manifest(
        session_id=state.session_id,
        version=state.version,
        token_ids=tuple(state.token_ids),
        turns=_decode_turns(state),
        recipe=recipe,
        recipe_name=state.recipe_name,
        model_fingerprint=state.model_fingerprint,
        kv_format=_kv_format(state.kv_format),
        num_kv_tokens=state.num_kv_tokens,
        segments=tuple(decode_ref(segment) for segment in state.segments),
        created_at_s=state.created_at_s,
        updated_at_s=state.updated_at_s,
        expires_at_s=state.expires_at_s,
        idempotency_key=state.idempotency_key,
    )
    if flaw := _flaw(manifest):
        raise SessionCorrupt(f"manifest contradicts itself: {flaw}")
    return manifest


def frame(payload: bytes) -> bytes:
    """The payload behind magic, format version and checksum."""
    return FORMAT + _digest(payload) + payload


def unframe(data: bytes, what: str) -> bytes:
    """The payload that `frame` was given. Raises SessionCorrupt, saying that it is `what`'s, for anything else."""
    start = len(FORMAT) + DIGEST_BYTES
    if not data.startswith(FORMAT):
        raise SessionCorrupt(f"{what} is not of the format this version reads")
    payload = data[start:]
    if data[len(FORMAT) : start] != _digest(payload):
        raise SessionCorrupt(f"{what} fails its checksum")
    return payload


def segment_id(data: bytes | memoryview) -> str:
    """The address of a segment: the hex digest of its bytes. Releases the GIL while it hashes."""
    return _digest(data).hex()


def _digest(data: bytes | memoryview) -> bytes:
    return blake3(data).digest(DIGEST_BYTES)


def _encode_turn(turn: Turn) -> pb.SavedTurn:
    assert turn.stop is not None  # noqa: S101 - _flaw has refused open turns
    return pb.SavedTurn(
        prompt_tokens=turn.generated_start - turn.start, generated_tokens=turn.stop - turn.generated_start
    )


def _decode_turns(state: pb.SessionState) -> tuple[Turn, ...]:
    turns, start = [], 0
    for saved in state.turns:
        generated_start = start + saved.prompt_tokens
        stop = generated_start + saved.generated_tokens
        turns.append(Turn(start, generated_start, stop))
        start = stop
    return tuple(turns)


def encode_ref(ref: SegmentRef) -> pb.SavedSegment:
    """The message for a segment."""
    return pb.SavedSegment(
        layers=ref.key.layers,
        start=ref.key.start,
        stop=ref.key.stop,
        id=bytes.fromhex(ref.segment_id),
        num_bytes=ref.num_bytes,
    )


def decode_ref(saved: pb.SavedSegment) -> SegmentRef:
    """The segment of a message, unchecked: see `segments_flaw`."""
    return SegmentRef(SliceKey(tuple(saved.layers), saved.start, saved.stop), saved.id.hex(), saved.num_bytes)


def _kv_format(name: str) -> KVFormat:
    for known in get_args(KVFormat):
        if name == known:
            return cast(KVFormat, known)
    raise SessionCorrupt(f"manifest cannot be read: KV format {name!r} is unknown")


def _json_object(text: str) -> dict[str, object]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("recipe is not a JSON object")  # noqa: TRY004 - bad data, not a wrong type in our code
    return value


def _flaw(manifest: Manifest) -> str | None:
    """What is wrong with a manifest, if anything: writer and reader hold it to the same rules."""
    num_tokens = len(manifest.token_ids)
    times = (manifest.created_at_s, manifest.updated_at_s, manifest.expires_at_s)
    if manifest.version < 1:
        return f"version {manifest.version} is not at least 1"
    if not 0 <= manifest.num_kv_tokens <= num_tokens:
        return f"KV state of {manifest.num_kv_tokens} tokens, but {num_tokens} tokens"
    if not all(math.isfinite(time_s) for time_s in times):
        return "a time is not a number"
    return _turns_flaw(manifest.turns, num_tokens) or segments_flaw(manifest.segments, manifest.num_kv_tokens)


def _turns_flaw(turns: tuple[Turn, ...], num_tokens: int) -> str | None:
    end = 0
    for turn in turns:
        if turn.stop is None or turn.start != end or not turn.start <= turn.generated_start <= turn.stop:
            return f"{turn} does not close or does not follow on token {end}"
        if turn.start == turn.stop:
            return f"{turn} is empty"
        end = turn.stop
    return None if end == num_tokens else f"turns cover {end} of {num_tokens} tokens"


def segments_flaw(refs: tuple[SegmentRef, ...], num_kv_tokens: int) -> str | None:
    """What is wrong with the segments of so many tokens, if anything."""
    sizes: dict[str, int] = {}
    for ref in refs:
        key = ref.key
        if len(ref.segment_id) != 2 * DIGEST_BYTES or not set(ref.segment_id) <= set("0123456789abcdef"):
            return f"segment id {ref.segment_id!r} is not a digest"
        if not 0 <= key.start < key.stop <= num_kv_tokens:
            return f"segment {ref.segment_id} of tokens [{key.start}, {key.stop}) of {num_kv_tokens}"
        if not key.layers or any(low >= high for low, high in pairwise((-1, *key.layers))):
            return f"segment {ref.segment_id} of layers {key.layers}"
        if ref.num_bytes < 1 or sizes.setdefault(ref.segment_id, ref.num_bytes) != ref.num_bytes:
            return f"segment {ref.segment_id} of {ref.num_bytes} bytes"
    if len({ref.key for ref in refs}) != len(refs):
        return "two segments are of the same part"
    return None
