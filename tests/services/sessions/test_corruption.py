"""Ten thousand damaged sessions: each is noticed, or harmless. None gives other values, another error, or takes memory.

Damage is done to what a store keeps, a manifest and segments, and met as a replica meets it. It is of two sorts. What
happens by accident leaves a checksum or a digest wrong. What is forged has a right checksum, as if a writer had erred;
it must not come further than the model's shape allows, and what is read are still the values that were saved.
"""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from typing import get_args

import pytest
import torch

from services.errors import SessionCorrupt
from services.sessions.check import check_bytes, check_segments, check_tokens
from services.sessions.codec import decode_manifest
from services.sessions.slice_codec import decode_slice
from services.sessions.store import KVFormat, Manifest

from .builders import SHAPE
from .damage import ACCIDENTS, FORGERIES, Stored, saved

PER_FORMAT = 2_500

MAX_BYTES = 1 << 20
"""Memory that reading may take: the session here has 15 KB of KV, and its token ids take as much."""


Values = list[tuple[str, bytes]]
"""Id of each segment in turn, and the bits of the tensor that it became."""


def restore(stored: Stored) -> tuple[Manifest, Values]:
    """Manifest and KV, by the steps of `Replica._restore`."""
    manifest = decode_manifest(stored.manifest)
    check_tokens(manifest, SHAPE)
    check_segments(manifest, SHAPE)
    values = []
    for ref in manifest.segments:
        if ref.segment_id not in stored.segments:
            raise SessionCorrupt("segment is missing")
        data = stored.segments[ref.segment_id]
        check_bytes(ref, data)
        part = decode_slice(ref, data, SHAPE.num_kv_heads, SHAPE.head_dim, torch.bfloat16, manifest.kv_format)
        values.append((ref.segment_id, part.data.view(torch.uint8).numpy().tobytes()))
    return manifest, values


MAY_BE_HARMLESS = {"forged noise", "forged name", "forged turn"}
"""What a reader cannot tell from a session that was meant so: other turns, names, times, tokens of the vocabulary."""


@pytest.mark.parametrize("kv_format", get_args(KVFormat))
def test_damage_is_noticed_or_harmless(kv_format: KVFormat) -> None:
    rng = random.Random(f"{kv_format} 1")
    whole = saved(kv_format)
    _, values = restore(whole)
    kinds = {**ACCIDENTS, **FORGERIES}
    noticed: Counter[str] = Counter()
    harmless: Counter[str] = Counter()
    tracemalloc.start()
    try:
        for _ in range(PER_FORMAT):
            kind = rng.choice(list(kinds))
            damaged = kinds[kind](rng, whole)
            assert damaged != whole
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            try:
                _, found = restore(damaged)
            except SessionCorrupt:
                noticed[kind] += 1
            else:
                harmless[kind] += 1
                assert found == values, kind
            assert tracemalloc.get_traced_memory()[1] - before < MAX_BYTES, kind
    finally:
        tracemalloc.stop()
    assert set(harmless) <= MAY_BE_HARMLESS
    assert set(noticed) == set(kinds) - {"forged name"}
    assert harmless["forged name"] > 0
    assert noticed.total() + harmless.total() == PER_FORMAT
