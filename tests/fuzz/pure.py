"""Targets that need no service: what reads bytes and mappings takes them, or refuses them by an error of ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from functools import cache
from typing import Any

import torch
from google.protobuf.message import DecodeError
from hypothesis import strategies as st

from services.errors import SessionCorrupt
from services.gateway.http.body import parse_object
from services.gateway.messages import prompt_input, sampling_params
from services.gateway.receiving import Intake
from services.gateway.sla import TenantPolicy, parse_headers
from services.gateway.upload import collect_upload
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.sessions.archive import read_archive, write_archive
from services.sessions.check import check_segments, check_tokens
from services.sessions.codec import decode_manifest, encode_manifest, frame
from services.sessions.kv_format import unpack
from services.sessions.prefix_codec import decode_prefix, encode_prefix
from services.sessions.store import KVFormat, SavedPrefix, SegmentRef
from swaa_runtime.errors import InvalidRequest
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import SamplingParams
from tests.services.gateway.builders import CLASSES
from tests.services.sessions.builders import SHAPE, make_state

from .inputs import HEADER_LISTS, JSON_VALUES, TEXTS, damaged, messages
from .target import Target

FORMATS: tuple[KVFormat, ...] = ("raw", "zstd", "int8", "fp8")


def headers(given: Any) -> None:
    with contextlib.suppress(InvalidRequest):
        parse_headers(given, CLASSES, TenantPolicy())


def sampling(fields: Any) -> None:
    with contextlib.suppress(InvalidRequest):
        SamplingParams(**fields)


def recipe(mapping: Any) -> None:
    """What is taken is written and read as it was."""
    with contextlib.suppress(InvalidRequest):
        made = Recipe.from_mapping(mapping)
        assert Recipe.from_mapping(made.to_mapping()) == made
        made.resolve(4)


def swaa_config(given: Any) -> None:
    mapping, convention = given
    with contextlib.suppress(InvalidRequest):
        Recipe.from_swaa_config(mapping, convention).resolve(4)


def json_body(data: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        parse_object(data)


def manifest(data: bytes) -> None:
    with contextlib.suppress(SessionCorrupt):
        read = decode_manifest(data)
        check_tokens(read, SHAPE)
        check_segments(read, SHAPE)


def prefix(data: bytes) -> None:
    with contextlib.suppress(SessionCorrupt):
        decode_prefix(data)


def kv_slice(given: Any) -> None:
    """Nothing larger than the shape says is made."""
    data, kv_format = given
    with contextlib.suppress(SessionCorrupt):
        assert unpack(data, (2, 2, 8, 1, 8), torch.bfloat16, kv_format).numel() == 256


def archive(given: Any) -> None:
    data, size = given

    async def read() -> None:
        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(data), size):
                yield data[start : start + size]

        found, segments = await read_archive(pieces())
        check_tokens(found, SHAPE)
        check_segments(found, SHAPE)
        async for ref, part in segments:
            assert len(part) == ref.num_bytes

    with contextlib.suppress(SessionCorrupt):
        asyncio.run(read())


def upload(parts: Any) -> None:
    """What was counted is given back, whatever happens."""
    intake = Intake(1 << 20)

    async def stream() -> AsyncIterator[pb.GenerateUploadRequest]:
        for part in parts:
            yield part

    async def collect() -> None:
        with intake.receiving("prompt", 200) as receiving:
            prompt, _ = await collect_upload(stream(), receiving, 50)
            prompt.check(200)

    with contextlib.suppress(InvalidRequest):
        asyncio.run(collect())
    assert intake.held_bytes == 0


@cache
def saved_archive(kv_format: KVFormat = "raw") -> bytes:
    """An archive as it should be."""
    state = make_state(kv_format, num_tokens=80)

    async def fetch(ref: SegmentRef) -> bytes:
        return bytes(state.segments[ref.segment_id])

    async def write() -> bytes:
        return b"".join([piece async for piece in write_archive(state.manifest, fetch)])

    return asyncio.run(write())


def _forged(data: bytes) -> bytes:
    """A framed payload of which something changed, with a checksum that is right again."""
    return frame(data)


def _recipe_mappings() -> st.SearchStrategy[Mapping[str, Any]]:
    names = st.sampled_from(
        ("window", "sink_tokens", "full_layers", "lookback_layers", "full_decode", "full_tail", "thinking", "adapter")
    )
    values = JSON_VALUES | st.sampled_from(
        ("1::2", "::0", ":", "-5:", "0:99", "1:2:3:4", "\u0661:\u0662", "9" * 5000 + ":")
    )
    return st.dictionaries(names | TEXTS, values, max_size=5)


def targets() -> list[Target]:
    """All of them."""
    state = make_state("raw", num_tokens=80).manifest
    good_manifest = encode_manifest(state)
    good_prefix = encode_prefix(SavedPrefix("prefix", state.num_kv_tokens, state.segments))
    swaa_names = st.sampled_from(("sliding_window_size", "keep_first", "force_fa_decode", "non_sliding_layers"))
    slices = st.sampled_from(FORMATS).flatmap(
        lambda kv_format: st.tuples(
            damaged(st.sampled_from([bytes(part) for part in make_state(kv_format, 80).segments.values()])),
            st.just(kv_format),
        )
    )
    archives = st.sampled_from([saved_archive(kv_format) for kv_format in FORMATS])
    head = len(frame(b""))
    sampling_fields = st.fixed_dictionaries(
        {},
        optional={
            "max_tokens": st.integers(),
            "temperature": st.floats(),
            "top_k": st.integers(),
            "top_p": st.floats(),
            "min_p": st.floats(),
            "seed": st.integers(),
            "stop": st.lists(TEXTS, max_size=20).map(tuple),
            "logprobs": st.integers(),
        },
    )
    return [
        Target("headers", HEADER_LISTS, headers),
        Target("sampling", sampling_fields, sampling),
        Target("recipe", _recipe_mappings(), recipe),
        Target(
            "swaa-config",
            st.tuples(
                st.dictionaries(swaa_names | TEXTS, JSON_VALUES, max_size=4), st.sampled_from(("hf", "vllm", ""))
            ),
            swaa_config,
        ),
        Target("json-body", damaged(JSON_VALUES.map(as_json)) | st.binary(max_size=60), json_body),
        Target("manifest", damaged(st.just(good_manifest)), manifest),
        Target("manifest-forged", damaged(st.just(good_manifest[head:])).map(_forged), manifest),
        Target("prefix", damaged(st.just(good_prefix)), prefix),
        Target("prefix-forged", damaged(st.just(good_prefix[head:])).map(_forged), prefix),
        Target("slice", slices, kv_slice),
        Target("archive", st.tuples(damaged(archives), st.integers(50, 9000)), archive),
        Target("upload", st.lists(messages(pb.GenerateUploadRequest), max_size=6), upload),
    ]


def as_json(value: Any) -> bytes:
    """As a client might write it: half surrogates, NaN and all."""

    return json.dumps({"value": value}, ensure_ascii=True).encode()


def message(data: bytes) -> None:
    """Bytes as a request over gRPC, as far as to what the gateway runs."""
    with contextlib.suppress(DecodeError):
        request = pb.GenerateRequest.FromString(data)
        with contextlib.suppress(InvalidRequest):
            prompt_input(request.prompt).check()
            sampling_params(request.sampling)


def examples() -> dict[str, bytes]:
    """A good input of each target that takes bytes."""
    state, head = make_state("raw", num_tokens=80).manifest, len(frame(b""))
    prompt = pb.Prompt(messages=[pb.ChatMessage(role="user", content="x")])
    return {
        "archive": saved_archive(),
        "manifest": encode_manifest(state)[head:],
        "prefix": encode_prefix(SavedPrefix("prefix", state.num_kv_tokens, state.segments))[head:],
        "json-body": b'{"messages": [{"role": "user", "content": "\\u00e9"}], "n": 1.5e3, "stream": true}',
        "message": pb.GenerateRequest(prompt=prompt, sampling=pb.Sampling(stop=["a"], seed=1)).SerializeToString(),
    }
