"""Bytes of a saved prefix: framed and checked as manifests are (`codec`)."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from services.errors import SessionCorrupt
from services.pb.swaa.v1 import session_state_pb2 as pb
from services.sessions.codec import decode_ref, encode_ref, frame, segments_flaw, unframe
from services.sessions.store import SavedPrefix
from swaa_runtime.errors import IntegrityError


def encode_prefix(prefix: SavedPrefix) -> bytes:
    """Bytes that `decode_prefix` reads back to an equal prefix. Raises IntegrityError if it contradicts itself."""
    if flaw := _flaw(prefix):
        raise IntegrityError(f"prefix {prefix.prefix_id!r}: {flaw}")
    try:
        state = pb.PrefixState(
            prefix_id=prefix.prefix_id,
            num_tokens=prefix.num_tokens,
            segments=[encode_ref(ref) for ref in prefix.segments],
        )
    except ValueError as exc:  # a number that its field cannot hold
        raise IntegrityError(f"prefix {prefix.prefix_id!r}: {exc}") from exc
    return frame(state.SerializeToString(deterministic=True))


def decode_prefix(data: bytes) -> SavedPrefix:
    """Read what `encode_prefix` wrote. Raises SessionCorrupt for anything else, before it trusts any of it."""
    payload = unframe(data, "prefix")
    try:
        state = pb.PrefixState.FromString(payload)
    except DecodeError as exc:
        raise SessionCorrupt(f"prefix cannot be read: {exc}") from exc
    prefix = SavedPrefix(state.prefix_id, state.num_tokens, tuple(decode_ref(saved) for saved in state.segments))
    if flaw := _flaw(prefix):
        raise SessionCorrupt(f"prefix contradicts itself: {flaw}")
    return prefix


def _flaw(prefix: SavedPrefix) -> str | None:
    if prefix.num_tokens < 1:
        return f"KV state of {prefix.num_tokens} tokens"
    return segments_flaw(prefix.segments, prefix.num_tokens)
