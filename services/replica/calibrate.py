"""Measures what steps cost on this machine and fits the cost profile (see `services.cost`).

Prompts alone, several at a time, and answers at a time are run under a few recipes; every engine step that comes of it
is a sample. Of steps with the same work the fastest counts: it was disturbed the least.
"""

from __future__ import annotations

import datetime
import math
import os
import random
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from services.cost import (
    DECODE_PRICES,
    PRICES,
    CostProfile,
    StepWork,
    chunk_work,
    count_layers,
    prefill_work,
    step_work,
)
from services.replica.engine_loop import EngineLoop, OutputStream
from services.replica.fit import fit_prices
from services.sessions.codec import segment_id
from services.sessions.slice_codec import decode_slice, encode_slice
from services.sessions.store import KVFormat, Manifest, SegmentRef, SessionStore
from swaa_runtime.batch import ScheduledChunk
from swaa_runtime.errors import OutOfCapacity
from swaa_runtime.group import Group
from swaa_runtime.kv_cache.slices import KVSlice, SliceKey
from swaa_runtime.model.loader import LoadedModel, torch_dtype
from swaa_runtime.outputs import Finished
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import SamplingParams, new_request
from swaa_runtime.shape import ModelShape
from swaa_runtime.step_cost import StepCost, UnknownCost
from swaa_runtime.visibility import Turn

RECIPES = (
    Recipe(),
    Recipe(window=128, sink_tokens=10, full_decode=True, full_tail=64),
    Recipe(window=512, sink_tokens=10),
)
"""Every query sees everything; few do; none does, over a wider window: between them the prices separate."""

HELD_OUT_RECIPES = (
    Recipe(),
    Recipe(window=256, sink_tokens=4, full_decode=True, full_tail=32),
    Recipe(window=256, sink_tokens=10, full_layers=(0,), full_decode=True),
    Recipe(window=1024, sink_tokens=10, full_decode=True, full_tail=64),
)
HELD_OUT_TOKENS = (330, 850, 2300, 5300, 21000, 90000)
"""What the fitted profile is checked on. None of the lengths, and of the recipes only the first, is fitted on."""

DECODE_TOKENS = 8
BATCH = 6

CROWD_DECODE_TOKENS = 48
"""Enough for answers to go on while others' prompts are run."""

PROBE_MIB = 16
MIB = 1 << 20

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much to measure.

    Attributes:
        lengths_tokens: prompt lengths, ascending; repeats: how often each is run.
        budget_s: no run is started that may end after so long, but for single prompts of up to NEEDED_TOKENS.
        crowd_tokens: lengths of prompts of which several are run at a time, as under load.
        held_out_tokens: prompt lengths that the profile is checked on.
        rest_tokens: see `near`; 0: lengths are as they are.
        prices: counts of a step that are priced, and the names of their prices: the more, the more has to be measured.
    """

    lengths_tokens: tuple[int, ...]
    repeats: int
    budget_s: float
    crowd_tokens: tuple[int, ...] = ()
    held_out_tokens: tuple[int, ...] = ()
    rest_tokens: int = 0
    prices: Mapping[str, str] = field(default_factory=lambda: PRICES)

    def near(self, num_tokens: int, max_step_tokens: int) -> int:
        """A length near this one whose last step has `rest_tokens`, if it takes more than one.

        A few tokens that look back at many, as those of a session's next turn: what tells reading keys from arithmetic.
        """
        num_steps = round(num_tokens / max_step_tokens) if self.rest_tokens else 0
        return num_steps * max_step_tokens + self.rest_tokens if num_steps else num_tokens

    def priced(self, steps: Iterable[StepWork]) -> Mapping[str, str]:
        """What is priced of these: keys only where such a rest was run, as nothing else tells them from arithmetic."""
        if not self.rest_tokens or any(step.prompt_tokens == self.rest_tokens for step in steps):
            return self.prices
        return {count: price for count, price in self.prices.items() if count != "keys"}


NEEDED_TOKENS = 2000
"""From prompts much shorter than these attention's prices cannot be read: everything fits into the windows."""

ROUGH_COUNTS = ("prompt_steps", "prompt_tokens", "pairs_all", "pairs_window", "keys", *DECODE_PRICES)
QUICK = Effort(
    (100, 500, NEEDED_TOKENS, 4000, 8000, 16000, 32000),
    1,
    12.0,
    rest_tokens=20,
    prices={count: PRICES[count] for count in ROUGH_COUNTS},
)
"""The long ones where they take next to nothing: on a GPU, prices of short prompts are 1.5 times those of long ones."""

THOROUGH = Effort(
    (64, 200, 500, 1500, 4000, 8000, 16000, 32000, 64000, 128000), 3, 180.0, (1500, 4000, 16000, 32000), HELD_OUT_TOKENS
)


@dataclass(frozen=True, slots=True)
class _Prompt:
    """One request of a run: a random prompt, and how many tokens to answer."""

    recipe: Recipe
    num_tokens: int
    max_tokens: int = DECODE_TOKENS


class _Recorder(UnknownCost):
    """Keeps the fastest time of each kind of step it sees."""

    def __init__(self) -> None:
        self.fastest_ms: dict[StepWork, float] = {}

    def observe(self, chunks: Sequence[ScheduledChunk], took_ms: float) -> None:
        work = step_work(
            chunk_work(count_layers(c.request.rules), c.request.turns, c.start, c.num_tokens) for c in chunks
        )
        self.fastest_ms[work] = min(took_ms, self.fastest_ms.get(work, took_ms))


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
    lengths = []
    for wanted in effort.lengths_tokens:
        near = effort.near(wanted, max_step_tokens)
        lengths += [length for length in (near, wanted) if length + DECODE_TOKENS <= max_tokens][:1]
    if not lengths:
        needed = min(effort.lengths_tokens) + DECODE_TOKENS
        raise OutOfCapacity(f"there is room for {max_tokens} tokens, measuring costs needs at least {needed}")
    crowds = [_crowd(length) for length in effort.crowd_tokens if length + CROWD_DECODE_TOKENS <= max_tokens]
    often, recorder = sorted(_runs(lengths), key=_num_tokens), _Recorder()
    runs = sorted([*often, *crowds], key=_num_tokens) + often * (effort.repeats - 1)
    needed_tokens = effort.near(NEEDED_TOKENS, max_step_tokens)
    runs.sort(key=lambda prompts: not _is_needed(prompts, needed_tokens))
    held_out = [
        _Prompt(recipe, length)
        for length in effort.held_out_tokens
        if length <= max(lengths)
        for recipe in HELD_OUT_RECIPES
    ]
    total, started_s = len(runs) + len(held_out) + 1, time.monotonic()
    await _run(loaded, engine, runs[0])  # the first run of all pays for allocations
    await _set_cost(engine, recorder)
    took_s: dict[int, float] = {}
    longest_tokens = 0
    try:
        for index, prompts in enumerate(runs):
            tokens, run_s = _num_tokens(prompts), time.monotonic()
            if _is_needed(prompts, needed_tokens) or run_s + _longest_s(took_s, tokens) < started_s + effort.budget_s:
                await _run(loaded, engine, prompts)
                took_s[tokens] = max(took_s.get(tokens, 0.0), time.monotonic() - run_s)
                longest_tokens = max(longest_tokens, *(prompt.num_tokens for prompt in prompts))
            progress(index + 1, total)
    finally:
        await _set_cost(engine, UnknownCost())
    profile = CostProfile(
        model_fingerprint=loaded.fingerprint,
        hardware=describe_hardware(loaded.model.device, loaded.group),
        measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        max_step_tokens=max_step_tokens,
        restore_ms_per_mib=await _measure_restore(loaded.shape, store, kv_format),
        **_fitted(recorder.fastest_ms, effort.priced(recorder.fastest_ms)),
    )
    errors = []
    for index, prompt in enumerate(held_out):
        if prompt.num_tokens <= longest_tokens:  # longer ones may take longer than the budget was
            errors.append(await _error(loaded, engine, profile, prompt))
        progress(len(runs) + index + 1, total)
    progress(total, total)
    if not errors:
        return profile
    return replace(profile, error_median=quantile(errors, 0.5), error_p95=quantile(errors, 0.95))


def _runs(lengths: Sequence[int]) -> list[tuple[_Prompt, ...]]:
    """What is run at a time: a prompt alone; answers beside prompts; answers beside answers."""
    alone = [(_Prompt(recipe, length),) for length in lengths for recipe in RECIPES]
    mixed = [
        tuple(_Prompt(recipe, length) for recipe, length in zip(RECIPES, sizes, strict=True))
        for sizes in ((lengths[0], *lengths[1:2], *lengths[2:3]), (*lengths[2:3], lengths[0], *lengths[1:2]))
        if len(sizes) == len(RECIPES)
    ]
    batches = [(_Prompt(recipe, lengths[0]),) * BATCH for recipe in RECIPES[:2]]
    return [*alone, *mixed, *batches]


def _crowd(length: int) -> tuple[_Prompt, ...]:
    """What a busy engine runs: several prompts of up to this length at a time, whose answers begin in turn.

    Once is enough, as no two of their steps are alike.
    """
    sizes = (length * (BATCH + 1 + at) // (2 * BATCH) for at in range(BATCH))
    return tuple(_Prompt(RECIPES[at % len(RECIPES)], size, CROWD_DECODE_TOKENS) for at, size in enumerate(sizes))


def _num_tokens(prompts: Sequence[_Prompt]) -> int:
    return sum(prompt.num_tokens for prompt in prompts)


def _longest_s(took_s: Mapping[int, float], tokens: int) -> float:
    """What a run of so many tokens may take, by shorter ones (s by tokens): attention grows with the square.

    By those of at least half as many, or by the longest if there are none; 0 if none was shorter.
    """
    shorter = [n for n in took_s if n <= tokens]
    near = [n for n in shorter if tokens <= 2 * n] or sorted(shorter)[-1:]
    return max((took_s[n] * (tokens / n) ** 2 for n in near), default=0.0)


def _is_needed(prompts: Sequence[_Prompt], needed_tokens: int) -> bool:
    return len(prompts) == 1 and prompts[0].num_tokens <= needed_tokens


def _fitted(fastest_ms: Mapping[StepWork, float], prices: Mapping[str, str]) -> dict[str, Any]:
    """The prices, as a profile takes them."""
    return fit_prices(list(fastest_ms), list(fastest_ms.values()), prices)


async def _run(loaded: LoadedModel, engine: EngineLoop, prompts: Sequence[_Prompt]) -> list[float]:
    """Run prompts at a time, and a few tokens of their answers. Times from admission to first token, in ms."""
    streams = []
    for index, prompt in enumerate(prompts):
        token_ids = random.Random(index).choices(range(loaded.shape.vocab_size), k=prompt.num_tokens)
        sampling = SamplingParams(max_tokens=prompt.max_tokens, ignore_eos=True)
        request = new_request(uuid.uuid4().hex, token_ids, prompt.recipe, loaded.shape.num_layers, sampling)
        streams.append(engine.submit(request))
    return [await _first_token_ms(stream) for stream in streams]


async def _first_token_ms(stream: OutputStream) -> float:
    while not isinstance(output := await stream.get(), Finished):
        pass
    if output.first_token_s is None or output.admitted_s is None:
        raise RuntimeError(f"calibration run ended early: {output.reason}")
    return (output.first_token_s - output.admitted_s) * 1e3


async def _error(loaded: LoadedModel, engine: EngineLoop, profile: CostProfile, prompt: _Prompt) -> float:
    """Relative error of the predicted time to a prompt's first token."""
    rules = prompt.recipe.resolve(loaded.shape.num_layers)
    predicted_ms = profile.prefill_ms(prefill_work(rules, (Turn(0, prompt.num_tokens),), 0, prompt.num_tokens))
    [measured_ms] = await _run(loaded, engine, [prompt])
    return relative_error(predicted_ms, measured_ms)


async def _set_cost(engine: EngineLoop, cost: StepCost) -> None:
    await engine.call(lambda engine: engine.set_cost(cost))


def relative_error(predicted_ms: float, measured_ms: float) -> float:
    """Of a prediction, relative to what happened."""
    return abs(predicted_ms - measured_ms) / measured_ms


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least this share of them does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


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


def describe_hardware(device: torch.device, group: Group | None = None) -> str:
    """A model's device in words, or those of all its ranks: what a profile or a figure was measured on."""
    if group is not None:
        return f"{group.size} x {describe_hardware(device)}"
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
