"""What each KV format costs: error of the next tokens' logits, stored bytes, and time to encode and decode.

    python -m benchmarks.kv_format_error

A prompt of real text is prefilled once under full attention. Its state is then stored in each format, read back, and
continued with the same 32 tokens of the text; logits are compared with those after the raw format, which is exact. The
row "rounding" is the exact state continued in steps of 16 tokens: what bfloat16 alone makes of other batch shapes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks import workload
from services.sessions.slice_codec import decode_slice, encode_slice
from services.sessions.store import KVFormat, SegmentRef
from swaa_runtime.batch import Batch
from swaa_runtime.config import EngineConfig
from swaa_runtime.engine import Engine
from swaa_runtime.kv_cache.restore import Restore
from swaa_runtime.kv_cache.slices import KVSlice
from swaa_runtime.model.loader import LoadedModel, load_model, torch_dtype
from swaa_runtime.outputs import Finished, StateSlices
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import Request, SamplingParams, new_request
from swaa_runtime.runner import ModelRunner
from swaa_runtime.visibility import Turn

NEXT_TOKENS, REPEATS = 32, 3
COLUMNS = ("tokens", "format", "bytes_per_token", "max_error", "mean_error", "kl_nats", "top1", "encode", "decode")


class RecordingRunner(ModelRunner):
    """Keeps the logits of the tokens of short steps."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        super().__init__(loaded, config)
        self.recorded: list[torch.Tensor] = []

    def forward(
        self, batch: Batch, rows: torch.Tensor | None = None, between_layers: Callable[[], None] | None = None
    ) -> torch.Tensor:
        hidden = super().forward(batch, None, between_layers)
        if hidden.shape[0] <= NEXT_TOKENS:
            self.recorded.append(self.logits(hidden))
        return hidden if rows is None else hidden[rows]


def run(
    loaded: LoadedModel, tokenizer: Any, request: Request, slices: Sequence[KVSlice], step_tokens: int
) -> tuple[list[KVSlice], RecordingRunner]:
    """The state that the request leaves, on an engine of its own that starts with these slices of its history."""
    size, max_tokens = workload.BLOCK_SIZE_TOKENS, request.prompt_stop + 1
    config = EngineConfig(
        num_blocks=loaded.shape.num_layers * -(-max_tokens // size) + 1,
        max_model_tokens=max_tokens,
        block_size_tokens=size,
        max_step_tokens=step_tokens,
        max_running=1,
        max_waiting=1,
    )
    runner = RecordingRunner(loaded, config)
    engine = Engine(runner, config, tokenizer, ())
    restore = Restore(max(part.key.stop for part in slices), [part.key for part in slices]) if slices else None
    engine.add(request, restore)
    engine.place(request.request_id, slices)
    exported: list[KVSlice] = []
    while True:
        for output in engine.step():
            if isinstance(output, StateSlices):
                exported += output.slices
            if isinstance(output, Finished):
                return exported, runner


def through(slices: Sequence[KVSlice], loaded: LoadedModel, kv_format: KVFormat) -> tuple[list[KVSlice], list[int]]:
    """The slices as they come back; bytes stored, and MB of KV encoded and decoded per second at best."""
    model = (loaded.shape.num_kv_heads, loaded.shape.head_dim, torch_dtype(loaded.shape.dtype))
    encode_s, decode_s = [], []
    for _ in range(REPEATS):
        start_s = time.perf_counter()
        blobs = [encode_slice(part, kv_format) for part in slices]
        encode_s.append(time.perf_counter() - start_s)
        stored = [(SegmentRef(part.key, "", len(blob)), bytes(blob)) for part, blob in zip(slices, blobs, strict=True)]
        start_s = time.perf_counter()
        back = [decode_slice(ref, blob, *model, kv_format) for ref, blob in stored]
        decode_s.append(time.perf_counter() - start_s)
    megabytes = sum(part.data.nbytes for part in slices) / 1e6
    return back, [sum(map(len, blobs)), round(megabytes / min(encode_s)), round(megabytes / min(decode_s))]


def measure(loaded: LoadedModel, tokenizer: Any, num_tokens: int) -> list[dict[str, Any]]:
    """A row for each format, and one for rounding."""
    text = workload.prompt_tokens(tokenizer, num_tokens + NEXT_TOKENS)
    prompt, following = text[:num_tokens], text[num_tokens:]
    num_layers, sampling = loaded.shape.num_layers, SamplingParams(max_tokens=1)
    prefill = new_request("prefill", prompt, Recipe(), num_layers, sampling, continues=True)
    state = run(loaded, tokenizer, prefill, (), 1024)[0]

    def logits_after(slices: Sequence[KVSlice], step_tokens: int) -> torch.Tensor:
        history = {"history_token_ids": prompt, "history_turns": (Turn(0, num_tokens, num_tokens),)}
        request = new_request("next", following, Recipe(), num_layers, sampling, **history)  # type: ignore[arg-type]
        return torch.cat(run(loaded, tokenizer, request, slices, step_tokens)[1].recorded)

    exact = logits_after(state, NEXT_TOKENS)
    rounded = compare(logits_after(state, NEXT_TOKENS // 2), exact)
    rows = [dict.fromkeys(COLUMNS, "-") | {"tokens": num_tokens, "format": "rounding"} | rounded]
    for kv_format in get_args(KVFormat):
        back, (num_bytes, encode, decode) = through(state, loaded, kv_format)
        row = {"tokens": num_tokens, "format": kv_format, "bytes_per_token": round(num_bytes / num_tokens)}
        rows.append(row | compare(logits_after(back, NEXT_TOKENS), exact) | {"encode": encode, "decode": decode})
    return rows


def compare(logits: torch.Tensor, exact: torch.Tensor) -> dict[str, float]:
    """Errors of logits [tokens, vocab_size]: KL(exact || logits) is a mean over tokens; top1 the part that agree."""
    error = (logits - exact).abs()
    wanted = exact.log_softmax(-1)
    divergence = (wanted.exp() * (wanted - logits.log_softmax(-1))).sum(-1).mean()
    return {
        "max_error": round(error.max().item(), 4),
        "mean_error": round(error.mean().item(), 5),
        "kl_nats": round(divergence.item(), 7),
        "top1": (logits.argmax(-1) == exact.argmax(-1)).float().mean().item(),
    }


def main() -> None:
    """Print a table, and all of it as one line of JSON. encode and decode are MB of bfloat16 KV per second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Hugging Face folder (default: the shipped model)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2000, 6000], help="prompt lengths in tokens")
    args = parser.parse_args()
    folder = workload.model_folder(args.model, torch.bfloat16)
    loaded = load_model(folder, torch.bfloat16, torch.device("cpu"))
    tokenizer = workload.load_tokenizer(folder)
    print("".join(f"{name:>16}" for name in COLUMNS))
    rows = []
    for num_tokens in args.lengths:
        for row in measure(loaded, tokenizer, num_tokens):
            print("".join(f"{row[name]:>16}" for name in COLUMNS), flush=True)
            rows.append(row)
    where = {"hardware": workload.hardware(loaded.model.device), "versions": workload.versions()}
    run_as = {"command": workload.command("benchmarks.kv_format_error"), "date": workload.today()}
    print(json.dumps({"model": folder.name, **where, **run_as, "rows": rows}))


if __name__ == "__main__":
    main()
