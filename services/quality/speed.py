"""Time to first token and KV memory of recipes, one request at a time on an engine that does nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from services.quality.recipes import Row
from services.quality.results import Timed
from swaa_runtime.engine import Engine
from swaa_runtime.outputs import Finished
from swaa_runtime.request import SamplingParams, new_request


def time_prefills(
    engine: Engine,
    rows: Sequence[Row],
    token_ids: Sequence[int],
    lengths_tokens: Sequence[int],
    repeats: int,
    hardware: str,
    on_timed: Callable[[Timed], None],
) -> None:
    """Prefill the first tokens of a text under every recipe, rounds interleaved; one round before is not counted."""
    for repeat in range(-1, repeats):
        for length in lengths_tokens:
            for row in rows:
                timed = _time(engine, row, token_ids[:length], repeat, hardware)
                if repeat >= 0:
                    on_timed(timed)


def _time(engine: Engine, row: Row, token_ids: Sequence[int], repeat: int, hardware: str) -> Timed:
    """Two tokens are asked for, so that what is held while decoding is seen too."""
    sampling = SamplingParams(max_tokens=2, ignore_eos=True)
    request = new_request("timed", token_ids, row.recipe, engine.runner.shape.num_layers, sampling)
    start = time.perf_counter()
    engine.add(request)
    while request.num_generated_tokens == 0:
        engine.step()
    ttft_ms = 1000.0 * (time.perf_counter() - start)
    outputs = engine.step()
    while not any(isinstance(output, Finished) for output in outputs):
        outputs = engine.step()
    finished = next(output for output in outputs if isinstance(output, Finished))
    per_block = engine.runner.storage.bytes_per_block
    return Timed(
        recipe=row.name,
        recipe_fingerprint=row.recipe.fingerprint(),
        length_tokens=len(token_ids),
        repeat=repeat,
        ttft_ms=ttft_ms,
        peak_kv_bytes=finished.peak_blocks * per_block,
        kv_bytes=finished.resident_blocks * per_block,
        hardware=hardware,
    )
