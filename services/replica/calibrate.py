"""Measures what turns cost on this machine and fits the cost profile (see `services.cost`)."""

from __future__ import annotations

import datetime
import os
import random
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from services.cost import CostProfile, decode_keys, fit, prefill_work
from services.replica.engine_loop import EngineLoop
from services.sessions.codec import segment_id
from services.sessions.slice_codec import decode_slice, encode_slice
from services.sessions.store import KVFormat, Manifest, SegmentRef, SessionStore
from swaa_runtime.errors import OutOfCapacity
from swaa_runtime.kv_cache.slices import KVSlice, SliceKey
from swaa_runtime.model.loader import LoadedModel, torch_dtype
from swaa_runtime.outputs import Finished
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import SamplingParams, new_request
from swaa_runtime.shape import ModelShape
from swaa_runtime.visibility import Turn

RECIPES = (
    Recipe(),
    Recipe(window=256, sink_tokens=10, full_decode=True, full_tail=64),
    Recipe(window=1024, sink_tokens=10),
)
"""Every query sees everything; few do; none does, over a wider window: between them the prices separate."""

DECODE_TOKENS = 8
PROBE_MIB = 16
MIB = 1 << 20

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much to measure: prompt lengths, and how often each is run (the fastest run counts)."""

    lengths_tokens: tuple[int, ...]
    repeats: int


QUICK = Effort((200, 1000, 3000), 1)
THOROUGH = Effort((64, 500, 1500, 4000, 8000), 3)


async def calibrate(
    loaded: LoadedModel,
    engine: EngineLoop,
    store: SessionStore,
    kv_format: KVFormat,
    max_step_tokens: int,
    max_tokens: int,
    effort: Effort,
    progress: Progress = lambda done, total: None,
) -> CostProfile:
    """Run prompts of some lengths under some recipes and fit the profile. Needs the engine for itself.

    Args:
        max_tokens: most tokens that model and KV memory take under full attention; longer runs are left out.

    Raises:
        OutOfCapacity: if that leaves none.
    """
    lengths = [length for length in effort.lengths_tokens if length + DECODE_TOKENS <= max_tokens]
    if not lengths:
        needed = min(effort.lengths_tokens) + DECODE_TOKENS
        raise OutOfCapacity(f"there is room for {max_tokens} tokens, measuring costs needs at least {needed}")
    runs = [(recipe, length) for recipe in RECIPES for length in lengths]
    await _measure(loaded, engine, RECIPES[0], lengths[0])  # the first run of all pays for allocations
    prefill_rows, prefill_ms, decode_rows, decode_ms = [], [], [], []
    for index, (recipe, length) in enumerate(runs):
        rules, turns = recipe.resolve(loaded.shape.num_layers), (Turn(0, length),)
        timed = [await _measure(loaded, engine, recipe, length) for _ in range(effort.repeats)]
        prefill_rows.append(prefill_work(rules, turns, 0, length).features(max_step_tokens))
        prefill_ms.append(min(ttft for ttft, _ in timed))
        decode_rows.append((1.0, float(decode_keys(rules, length + DECODE_TOKENS // 2))))
        decode_ms.append(min(tpot for _, tpot in timed))
        progress(index + 1, len(runs) + 1)
    step, token, pair, window_pair = fit(prefill_rows, prefill_ms)
    decode_step, decode_key = fit(decode_rows, decode_ms)
    restore_ms_per_mib = await _measure_restore(loaded.shape, store, kv_format)
    progress(len(runs) + 1, len(runs) + 1)
    return CostProfile(
        model_fingerprint=loaded.fingerprint,
        hardware=describe_hardware(loaded.model.device),
        measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        max_step_tokens=max_step_tokens,
        step_ms=step,
        token_ms=token,
        pair_ns=pair * 1e6,
        window_pair_ns=window_pair * 1e6,
        decode_step_ms=decode_step,
        decode_key_ns=decode_key * 1e6,
        restore_ms_per_mib=restore_ms_per_mib,
    )


async def _measure(loaded: LoadedModel, engine: EngineLoop, recipe: Recipe, length: int) -> tuple[float, float]:
    """(time to first token, time per token after it) of one random prompt, in ms."""
    token_ids = random.Random(length).choices(range(loaded.shape.vocab_size), k=length)
    sampling = SamplingParams(max_tokens=DECODE_TOKENS, ignore_eos=True)
    request = new_request(uuid.uuid4().hex, token_ids, recipe, loaded.shape.num_layers, sampling)
    stream = engine.submit(request)
    while True:
        output = await stream.get()
        if isinstance(output, Finished):
            break
    stopped_s = time.monotonic()
    if output.first_token_s is None or output.admitted_s is None:
        raise RuntimeError(f"calibration run ended early: {output.reason}")
    ttft_ms = (output.first_token_s - output.admitted_s) * 1e3
    return ttft_ms, (stopped_s - output.first_token_s) * 1e3 / (DECODE_TOKENS - 1)


async def _measure_restore(shape: ModelShape, store: SessionStore, kv_format: KVFormat) -> float:
    """ms to fetch, check and unpack a stored MiB of KV."""
    tokens = 256
    num_layers = max(1, PROBE_MIB * MIB // 4 // (tokens * shape.bytes_per_token_layer))
    slices = [
        KVSlice(
            SliceKey(tuple(range(num_layers)), start * tokens, (start + 1) * tokens),
            torch.randn(num_layers, 2, tokens, shape.num_kv_heads, shape.head_dim).to(torch_dtype(shape.dtype)),
        )
        for start in range(4)
    ]
    blobs = [encode_slice(part, kv_format) for part in slices]
    refs = [SegmentRef(part.key, segment_id(blob), len(blob)) for part, blob in zip(slices, blobs, strict=True)]
    session_id, now = uuid.uuid4().hex, time.time()
    manifest = Manifest(
        session_id,
        1,
        (0,) * (4 * tokens),
        (Turn(0, 1, 4 * tokens),),
        Recipe(),
        "full",
        "calibration",
        kv_format,
        4 * tokens,
        tuple(refs),
        now,
        now,
        now + 60,
    )
    await store.save("calibration", manifest, {ref.segment_id: blob for ref, blob in zip(refs, blobs, strict=True)}, 0)
    started_s = time.monotonic()
    fetched = await store.fetch("calibration", refs)
    for ref, blob in zip(refs, fetched, strict=True):
        decode_slice(ref, blob, shape.num_kv_heads, shape.head_dim, torch_dtype(shape.dtype), kv_format)
    took_ms = (time.monotonic() - started_s) * 1e3
    await store.delete("calibration", session_id)
    return took_ms / (sum(ref.num_bytes for ref in refs) / MIB)


def describe_hardware(device: torch.device) -> str:
    """The device in words: what a profile or a figure was measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names: Sequence[str] = ()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else 'CPU'}, {cores} cores, {torch.get_num_threads()} threads"
