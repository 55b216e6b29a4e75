"""Ways to damage what a store keeps of a session: by accident, and by forgery, which has a right checksum."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import get_args

import zstandard

from services.pb.swaa.v1 import session_state_pb2 as pb
from services.sessions.codec import DIGEST_BYTES, FORMAT, encode_manifest, segment_id
from services.sessions.store import KVFormat

from .builders import SHAPE, make_state

BOMB = zstandard.compress(bytes(8 << 20))
NUM_TOKENS = 200
"""Of the session: six segments, of sinks, of a window, and of a whole past that is cut three times."""
HEADER_BYTES = len(FORMAT) + DIGEST_BYTES


@dataclass(frozen=True, slots=True)
class Stored:
    """What a store keeps of one session."""

    manifest: bytes
    segments: dict[str, bytes]


@cache
def saved(kv_format: KVFormat, seed: int = 0) -> Stored:
    session = make_state(kv_format, NUM_TOKENS, seed)
    return Stored(encode_manifest(session.manifest), {name: bytes(data) for name, data in session.segments.items()})


Damage = Callable[[random.Random, Stored], Stored]


def flipped(rng: random.Random, data: bytes) -> bytes:
    """Up to eight bits of it, all different."""
    damaged = bytearray(data)
    for bit in rng.sample(range(8 * len(data)), rng.randint(1, 8)):
        damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def extended(rng: random.Random, data: bytes) -> bytes:
    return data + rng.choice((data, rng.randbytes(rng.randint(1, 300))))


def zeroed(rng: random.Random, data: bytes) -> bytes:
    return bytes(len(data))


def on_manifest(damage: Callable[[random.Random, bytes], bytes]) -> Damage:
    return lambda rng, stored: replace(stored, manifest=damage(rng, stored.manifest))


def on_segment(damage: Callable[[random.Random, bytes], bytes]) -> Damage:
    def run(rng: random.Random, stored: Stored) -> Stored:
        name = rng.choice(list(stored.segments))
        return replace(stored, segments={**stored.segments, name: damage(rng, stored.segments[name])})

    return run


def swapped(rng: random.Random, stored: Stored) -> Stored:
    one, other = rng.sample(list(stored.segments), 2)
    return replace(stored, segments={**stored.segments, one: stored.segments[other], other: stored.segments[one]})


def lost(rng: random.Random, stored: Stored) -> Stored:
    name = rng.choice(list(stored.segments))
    return replace(stored, segments={key: data for key, data in stored.segments.items() if key != name})


def replaced(rng: random.Random, stored: Stored) -> Stored:
    """A segment of another session, of the same part, under this one's id."""
    at = rng.randrange(len(stored.segments))
    other = saved(state_of(stored).kv_format, seed=1)
    name = list(stored.segments)[at]
    return replace(stored, segments={**stored.segments, name: list(other.segments.values())[at]})


def of_another(rng: random.Random, stored: Stored) -> Stored:
    return replace(stored, manifest=saved(state_of(stored).kv_format, seed=1).manifest)


def state_of(stored: Stored) -> pb.SessionState:
    return pb.SessionState.FromString(stored.manifest[HEADER_BYTES:])


def sealed(payload: bytes) -> bytes:
    return FORMAT + bytes.fromhex(segment_id(payload)) + payload


Edit = Callable[[random.Random, pb.SessionState], object]


def number(rng: random.Random, old: int, most: int = 2**32 - 1) -> int:
    """Another one: near, or anywhere."""
    near = [value for value in (old - 1, old + 1, 0, 2 * old, most) if 0 <= value <= most and value != old]
    return rng.choice((rng.choice(near), rng.randint(0, most)))


def edit_token(rng: random.Random, state: pb.SessionState) -> None:
    state.token_ids[rng.randrange(len(state.token_ids))] = rng.choice((SHAPE.vocab_size, 2**32 - 1))


def edit_num_tokens(rng: random.Random, state: pb.SessionState) -> None:
    rng.choice((state.token_ids.pop, lambda: state.token_ids.append(0)))()


def edit_num_bytes(rng: random.Random, state: pb.SessionState) -> None:
    segment = rng.choice(state.segments)
    segment.num_bytes = number(rng, segment.num_bytes, 2**64 - 1)


def edit_layers(rng: random.Random, state: pb.SessionState) -> None:
    segment = rng.choice(state.segments)
    segment.layers[:] = rng.choice(([SHAPE.num_layers], [2**32 - 1], [*segment.layers, 99], [0, 1, 2, 3], [], [1, 0]))


def edit_range(rng: random.Random, state: pb.SessionState) -> None:
    segment = rng.choice(state.segments)
    name = rng.choice(("start", "stop"))
    setattr(segment, name, number(rng, getattr(segment, name)))


def edit_id(rng: random.Random, state: pb.SessionState) -> None:
    """To one of another part's (of another size), or to one that is nobody's."""
    segment = rng.choice(state.segments)
    others = [other.id for other in state.segments if other.num_bytes != segment.num_bytes]
    segment.id = rng.choice((*others, rng.randbytes(DIGEST_BYTES), rng.randbytes(rng.randint(0, 40))))


def edit_list(rng: random.Random, state: pb.SessionState) -> None:
    """One segment too few, one twice, or two in the wrong order."""
    segments = list(state.segments)
    one, other = rng.sample(range(len(segments)), 2)
    change = rng.randrange(3)
    if change == 0:
        del segments[one]
    elif change == 1:
        segments.insert(other, segments[one])
    else:
        segments[one], segments[other] = segments[other], segments[one]
    del state.segments[:]
    state.segments.extend(segments)


def edit_format(rng: random.Random, state: pb.SessionState) -> None:
    state.kv_format = rng.choice([name for name in (*get_args(KVFormat), "", "gzip") if name != state.kv_format])


def edit_recipe(rng: random.Random, state: pb.SessionState) -> None:
    state.recipe_json = rng.choice(
        (
            '{"window": 41, "sink_tokens": 2, "full_layers": "1::2"}',
            '{"window": 40, "sink_tokens": 2, "full_layers": [1, 4]}',
            '{"window": 40, "sink_tokens": 2, "full_layers": "1::2", "full_decode": true}',
            '{"window": 40, "sink_tokens": 2147483647, "full_layers": "1::2"}',
            '{"window": 0}',
            "{}",
            "[" * 5000,
            "",
        )
    )


def edit_num_kv_tokens(rng: random.Random, state: pb.SessionState) -> None:
    state.num_kv_tokens = number(rng, state.num_kv_tokens)


def edit_turn(rng: random.Random, state: pb.SessionState) -> None:
    turn = rng.choice(state.turns)
    turn.prompt_tokens = number(rng, turn.prompt_tokens)


EDITS: tuple[Edit, ...] = (
    edit_token,
    edit_num_tokens,
    edit_num_bytes,
    edit_layers,
    edit_range,
    edit_id,
    edit_list,
    edit_format,
    edit_recipe,
    edit_num_kv_tokens,
    edit_turn,
)


def forged(edit: Edit) -> Damage:
    """The edited manifest, with a checksum that is right."""

    def run(rng: random.Random, stored: Stored) -> Stored:
        state = state_of(stored)
        edit(rng, state)
        return replace(stored, manifest=sealed(state.SerializeToString(deterministic=True)))

    return run


def edited(rng: random.Random, stored: Stored) -> Stored:
    """Any edit, under the old checksum."""
    changed = forged(rng.choice(EDITS))(rng, stored).manifest
    return replace(stored, manifest=stored.manifest[:HEADER_BYTES] + changed[HEADER_BYTES:])


def forged_noise(rng: random.Random, stored: Stored) -> Stored:
    payload = rng.choice((flipped, cut, extended))(rng, stored.manifest[HEADER_BYTES:])
    return replace(stored, manifest=sealed(payload))


def forged_segment(rng: random.Random, stored: Stored) -> Stored:
    """A segment that cannot be decoded, under its right id and size: a frame that lies, a wrong mark, a cut."""
    state = state_of(stored)
    segment = rng.choice(state.segments)
    old = stored.segments[segment.id.hex()]
    size_lie = old[:5] + struct.pack("<I", rng.randrange(2**32)) + old[9:]
    data = rng.choice((cut(rng, old), extended(rng, old), rng.randbytes(4) + old[4:], size_lie, BOMB))
    if state.kv_format == "raw":
        data = rng.choice((cut(rng, old), extended(rng, old), BOMB))  # any bytes of the right size are raw KV
    if state.kv_format in ("int8", "fp8"):
        data = rng.choice((cut(rng, old), extended(rng, old), rng.randbytes(4) + old[4:], BOMB))
    segment.id, segment.num_bytes = bytes.fromhex(segment_id(data)), len(data)
    segments = {**stored.segments, segment_id(data): data}
    return Stored(sealed(state.SerializeToString(deterministic=True)), segments)


def forged_name(rng: random.Random, stored: Stored) -> Stored:
    """What says nothing of the state."""
    state = state_of(stored)
    state.recipe_name, state.expires_at_s = "renamed", rng.random()
    return replace(stored, manifest=sealed(state.SerializeToString(deterministic=True)))


ACCIDENTS: dict[str, Damage] = {
    "manifest flipped": on_manifest(flipped),
    "manifest cut": on_manifest(cut),
    "manifest extended": on_manifest(extended),
    "manifest zeroed": on_manifest(zeroed),
    "manifest edited": edited,
    "manifest of another": of_another,
    "segment flipped": on_segment(flipped),
    "segment cut": on_segment(cut),
    "segment extended": on_segment(extended),
    "segment zeroed": on_segment(zeroed),
    "segment lost": lost,
    "segment replaced": replaced,
    "segments swapped": swapped,
}
FORGERIES: dict[str, Damage] = {
    **{f"forged {edit.__name__.removeprefix('edit_')}": forged(edit) for edit in EDITS},
    "forged noise": forged_noise,
    "forged segment": forged_segment,
    "forged name": forged_name,
}
