"""Dense attention of a prompt's queries over everything up to themselves: flash-attn beside cuDNN and the matmul rate.

    python -m benchmarks.bench_dense                   # about 4 minutes on an H100, most of it flash-attn compiling

One layer of Qwen3-4B's shape in bfloat16, random. Every result is compared with float32 math on sampled rows. `first`
is the first call of a shape, which may have something prepared for it; the last line is JSON.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch

from benchmarks import workload
from benchmarks.bench_gpu import measure_rates
from swaa_runtime.attention.dense import dense_attention_math
from swaa_runtime.attention.prefix import FlashPrefix, PiecewisePrefix, PrefixAttention, find_flash

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 32, 8, 128
SCALE = HEAD_DIM**-0.5
WINDOW = 2_048
ERROR_BOUND = 1e-2

CHUNKS = ((8_192, 32_768), (8_192, 131_072), (16_384, 32_768), (16_384, 131_072))
WHOLE = tuple((count, count) for count in (8_192, 16_384, 32_768, 65_536, 131_072))
ODD = ((7_777, 99_999), (129, 131_072))
"""(queries, keys up to the last of them)."""

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. Times in ms; `error` relative, over sampled rows."""

    kernel: str
    queries: int
    keys: int
    first_ms: float
    ms: float
    floor_ms: float
    tflops: float
    error: float


class Inputs:
    """Random q, k and v of one layer, of which shapes take the part that they need."""

    def __init__(self, max_tokens: int, head_dim: int, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def rows(heads: int) -> torch.Tensor:
            shape = (max_tokens, heads, head_dim)
            return torch.randn(shape, generator=generator, dtype=torch.bfloat16, device=device)

        self._query, self._key, self._value = rows(NUM_HEADS), rows(NUM_KV_HEADS), rows(NUM_KV_HEADS)

    def of(self, queries: int, keys: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query [queries, num_heads, head_dim]; key, value [keys, num_kv_heads, head_dim]."""
        return self._query[:queries], self._key[:keys], self._value[:keys]


def timed_ms(work: Callable[[], object]) -> float:
    """Milliseconds until the device has done it."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def sampled_error(
    out: torch.Tensor, qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor], window: int | None, count: int = 24
) -> float:
    """‖out - ref‖ / ‖ref‖ over some rows, the first and last among them; ref in float32."""
    query, key, value = qkv
    last = len(query) - 1
    at = torch.tensor(sorted({0, last, *torch.randint(last + 1, (count,)).tolist()}), device=query.device)
    position = at + len(key) - len(query)
    distance = position[:, None] - torch.arange(len(key), device=query.device)
    visible = (distance >= 0) & (distance < (window or len(key)))
    bias = torch.zeros(visible.shape, device=query.device).masked_fill(~visible, -torch.inf)
    some, key, value = (tensor.float().transpose(0, 1).unsqueeze(0) for tensor in (query[at], key, value))
    want = dense_attention_math(some, key, value, query.shape[-1] ** -0.5, bias=bias)[0][0].transpose(0, 1)
    return float((out[at].float() - want).norm() / want.norm())


def visible_pairs(queries: int, keys: int, window: int | None) -> int:
    """Pairs of a query and a key that it sees."""
    start = keys - queries
    if window is None:
        return queries * start + queries * (queries + 1) // 2
    return sum(min(window, position + 1) for position in range(start, keys))


def measure(
    kernel: str, attend: Attend, inputs: Inputs, shape: tuple[int, int], flops: float, repeats: int, window: int | None
) -> Row:
    """One shape: its first call, its error, and the median of the next calls."""
    qkv = inputs.of(*shape)
    results: list[torch.Tensor] = []
    first_ms = timed_ms(lambda: results.append(attend(*qkv)))
    error = sampled_error(results[0], qkv, window)
    ms = statistics.median(timed_ms(lambda: attend(*qkv)) for _ in range(repeats))
    work = 4.0 * visible_pairs(*shape, window) * NUM_HEADS * HEAD_DIM
    row = Row(kernel, *shape, first_ms, ms, work / flops * 1e3, work / ms / 1e9, error)
    print(
        f"{kernel:28}{shape[0]:>9,} x{shape[1]:>8,}{first_ms:>12,.2f}{ms:>10,.2f}{row.floor_ms:>10,.2f}"
        f"{row.tflops:>10,.0f}{error:>11.1e}",
        flush=True,
    )
    assert error < ERROR_BOUND, f"{kernel} is off by {error} for {shape}"
    return row


def prompt_ms(attend: Attend, inputs: Inputs, chunk: int, num_tokens: int) -> float:
    """A prompt of so many tokens in chunks, as an engine runs it; the first time it includes what new shapes cost."""

    def run() -> None:
        for stop in range(chunk, num_tokens + 1, chunk):
            attend(*inputs.of(chunk, stop))

    return timed_ms(run)


def kernels(names: Sequence[str]) -> list[PrefixAttention]:
    """cuDNN, and flash-attn where it is installed; version 4 packs query heads that share a KV head or not."""
    found: list[PrefixAttention] = [PiecewisePrefix("cudnn")]
    flash = find_flash(None)
    if flash is not None:
        found.append(flash)
        if flash.name == "flash-attn-4":
            found.append(
                replace(flash, name=f"{flash.name} unpacked", function=partial(flash.function, pack_gqa=False))
            )
    return [kernel for kernel in found if not names or kernel.name in names]


def flash_window(flash: FlashPrefix) -> Attend:
    """The window alone, without sinks; flash-attn's bound does not count the query itself."""
    windowed = replace(flash, function=partial(flash.function, window_size=(WINDOW - 1, 0)))
    return partial(windowed.attend, scale=SCALE)


def main() -> None:
    """Run it; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kernels", nargs="*", default=[], help="only these, by name")
    args = parser.parse_args()
    device = torch.device("cuda")
    flops = measure_rates(device).matmul_flops
    print(f"matmul {flops / 1e12:,.0f} TFLOP/s, torch {torch.__version__}")
    inputs = Inputs(131_072, HEAD_DIM, device)
    small = Inputs(8_192, 64, device)
    rows: list[Row] = []
    prompts: dict[str, dict[str, float]] = {}
    print(f"{'':28}{'queries x keys':>19}{'first ms':>12}{'ms':>10}{'floor ms':>10}{'TFLOP/s':>10}{'error':>11}")
    with torch.inference_mode():
        for kernel in kernels(args.kernels):
            attend = partial(kernel.attend, scale=SCALE)
            shapes = (*CHUNKS, *WHOLE, *ODD)
            rows += [measure(kernel.name, attend, inputs, shape, flops, args.repeats, None) for shape in shapes]
            first, second = (prompt_ms(attend, inputs, 4_096, 131_072) for _ in range(2))
            prompts[kernel.name] = {"first_ms": first, "ms": second}
            print(f"{kernel.name}: 131,072 in chunks of 4,096: {first:,.1f} ms, then {second:,.1f} ms", flush=True)
            qkv = small.of(1_000, 8_192)
            error = sampled_error(kernel.attend(*qkv, 64**-0.5), qkv, None)
            print(f"{kernel.name}: error with head_dim 64: {error:.1e}", flush=True)
            assert error < ERROR_BOUND
        for kernel in kernels(args.kernels):
            if isinstance(kernel, FlashPrefix):
                name = f"{kernel.name}, window {WINDOW}"
                rows.append(measure(name, flash_window(kernel), inputs, (131_072,) * 2, flops, args.repeats, WINDOW))
    summary = {
        "benchmark": "dense",
        "hardware": workload.hardware(device),
        "versions": workload.versions() | {"flash": flash_version()},
        "date": workload.today(),
        "command": workload.command("benchmarks.bench_dense"),
        "matmul_tflops": round(flops / 1e12, 1),
        "prompt_131k_in_chunks_of_4096": prompts,
        "rows": [asdict(row) for row in rows],
    }
    print("\n" + json.dumps(summary))


def flash_version() -> str:
    """Of the flash-attn in use, as its package says."""
    flash = find_flash(None)
    if flash is None:
        return "none"
    try:
        return f"{flash.name} {importlib.metadata.version(flash.name.removesuffix('-2').removesuffix('-3'))}"
    except importlib.metadata.PackageNotFoundError:
        return flash.name


if __name__ == "__main__":
    main()
