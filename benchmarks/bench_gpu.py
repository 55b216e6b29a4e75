"""The engine at a GPU's limit: first and next tokens of a model of Qwen3-4B's shape, beside transformers and the floor.

    python -m benchmarks.bench_gpu                       # all rows, about 6 minutes on an H100
    python -m benchmarks.bench_gpu --rows ttft-sliding decode-batch --repeats 1

Weights are random, in bfloat16; prompts are random tokens. The floor is what the work takes at the rates of the card,
which are measured first: the arithmetic of matmuls and visible attention at the rate of a large matmul, a decoding
step's bytes at the rate of a large copy. Before any time is taken, attention on fresh random data is compared with the
oracle, and so are the tokens of the whole engine with transformers' own layers. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks import workload
from benchmarks.gpu_checks import check_attention, check_tokens
from swaa_runtime.config import EngineConfig, KVDtypeName
from swaa_runtime.engine import Engine
from swaa_runtime.model.attention import ATTENTION_NAME, register_attention
from swaa_runtime.model.loader import LoadedModel, wrap_model
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import Request, SamplingParams, new_request
from swaa_runtime.runner import ModelRunner
from swaa_runtime.shape import ModelShape
from swaa_runtime.visibility import attended_keys

LONG, MILLION, SHORT = 131_072, 1_000_000, 8_192
VOCAB_SIZE = 151_936
WINDOW, SINKS = 2_048, 64

SLIDING = Recipe(window=WINDOW, sink_tokens=SINKS)
RECIPES = {
    "sliding": SLIDING,
    "lookback": Recipe(window=WINDOW, sink_tokens=SINKS, full_decode=True, full_tail=64, lookback_layers="3::4"),
    "quarter": Recipe(window=WINDOW, sink_tokens=SINKS, full_layers="3::4"),
    "full": Recipe(),
    "full-decode": Recipe(window=WINDOW, sink_tokens=SINKS, full_decode=True),
}

LOW_LOOKBACK = replace(RECIPES["lookback"], lookback_layers=tuple(range(6, 24, 2)))
"""As many layers look back, none of the upper third: where calibration finds them in the default model."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What the card does: floating-point operations and bytes (read and written) a second."""

    matmul_flops: float
    copy_bytes: float


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `ours`, `floor`, `peer` and `reach` in `unit`; None: there is none."""

    name: str
    unit: str
    ours: float
    spread: tuple[float, float]
    floor: float | None = None
    peer: float | None = None
    reach: float | None = None


class Bench:
    """A model, engines over it, and the rates to compare with."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = torch.device(args.device)
        self.loaded = make_model(self.device)
        self.rates = measure_rates(self.device)
        self.parameters: int = sum(p.numel() for p in self.loaded.model.parameters())

    @property
    def shape(self) -> ModelShape:
        """The model's."""
        return self.loaded.shape

    def engine(
        self,
        recipe: Recipe,
        num_tokens: int,
        max_running: int = 1,
        step_tokens: int | None = None,
        skip_unseen: bool = False,
        kv_dtype: KVDtypeName = "model",
    ) -> Engine:
        """An engine with room for so many sequences of so many tokens under a recipe."""
        step_tokens = step_tokens or self.args.step_tokens
        size = self.args.block_tokens
        request = Request("", [0] * num_tokens, (), recipe, recipe.resolve(self.shape.num_layers), SamplingParams())
        blocks = sum(
            layer_blocks(rule.window, rule.full_decode or rule.full_tail > 0, num_tokens, step_tokens, size)
            for rule in request.rules
        )
        config = EngineConfig(
            num_blocks=2 + blocks * max_running,
            max_model_tokens=num_tokens,
            block_size_tokens=size,
            max_step_tokens=step_tokens,
            max_running=max_running,
            attention_backend="triton",
            skip_unseen=skip_unseen,
            kv_dtype=kv_dtype,
        )
        return Engine(self.runner(config), config, NoText(), ())

    def runner(self, config: EngineConfig) -> ModelRunner:
        """What runs the model."""
        return ModelRunner(self.loaded, config)

    def linear_flops(self, num_tokens: int) -> float:
        """Operations of all matmuls of the layers for so many tokens."""
        embedding: int = VOCAB_SIZE * self.loaded.model.config.hidden_size
        return 2.0 * num_tokens * (self.parameters - embedding)

    def prefill_floor_s(self, recipe: Recipe, num_tokens: int) -> float:
        """Matmuls and visible attention at the matmul rate."""
        shape = self.shape
        request = prompt_request("floor", num_tokens, recipe, shape.num_layers)
        pairs = sum(attended_keys(rule, request.turns, 0, num_tokens) for rule in request.rules)
        attention = 4.0 * pairs * shape.num_heads * shape.head_dim
        return (self.linear_flops(num_tokens) + attention) / self.rates.matmul_flops

    def decode_floor_s(self, recipe: Recipe, num_tokens: int, batch: int = 1, kv_dtype: KVDtypeName = "model") -> float:
        """Weights once and visible KV of each sequence, at the copy rate."""
        keys = 0
        for rule in recipe.resolve(self.shape.num_layers):
            sees_all = rule.window is None or rule.full_decode
            keys += num_tokens if sees_all else min(num_tokens, rule.sink_tokens + (rule.window or 0))
        kv_bytes = keys * self.shape.pool_bytes_per_token_layer(kv_dtype)
        return (2.0 * self.parameters + batch * kv_bytes) / self.rates.copy_bytes


class NoText:
    """Random weights say nothing."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        """No text."""
        return ""


def layer_blocks(window: int | None, keeps_all: bool, num_tokens: int, step_tokens: int, size: int) -> int:
    """Most blocks that a layer comes to hold."""
    everything = -(-num_tokens // size) + 1
    if window is None or keeps_all:
        return everything
    return min(everything, -(-SINKS // size) + -(-(window + step_tokens) // size) + 2)


def make_model(device: torch.device) -> LoadedModel:
    """Qwen3-4B's shape with random weights."""
    register_attention()
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=1 << 20,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        dtype="bfloat16",
    )
    config._attn_implementation = ATTENTION_NAME
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = Qwen3ForCausalLM(config)
    return wrap_model(model.bfloat16().eval().requires_grad_(False), "random")


def measure_rates(device: torch.device) -> Rates:
    """A matmul of 8,192 cubed on random data, and a copy of 2 GiB."""
    left, right = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(1 << 30, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    matmul_s = statistics.median(timed(lambda: left @ right) for _ in range(20))
    copy_s = statistics.median(timed(lambda: target.copy_(source)) for _ in range(10))
    return Rates(2 * 8192**3 / matmul_s, 2 * source.nbytes / copy_s)


def timed(work: Callable[[], Any]) -> float:
    """Seconds that the device takes for it."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def prompt_request(name: str, num_tokens: int, recipe: Recipe, num_layers: int, max_tokens: int = 1) -> Request:
    """A prompt of random tokens."""
    tokens = torch.randint(3, VOCAB_SIZE, (num_tokens,)).tolist()
    return new_request(name, tokens, recipe, num_layers, SamplingParams(max_tokens=max_tokens, ignore_eos=True))


def first_token_s(engine: Engine, request: Request) -> float:
    """Seconds from adding a request to its first token, nothing else running."""
    start = time.perf_counter()
    engine.add(request)
    while request.first_token_s is None:
        engine.step()
    return time.perf_counter() - start


def drain(engine: Engine) -> None:
    """Run until nothing is left."""
    while engine.has_work:
        engine.step()


def ttft(
    bench: Bench,
    name: str,
    recipe: Recipe,
    num_tokens: int,
    reach: float | None = None,
    peer: float | None = None,
    skip_unseen: bool = False,
) -> Row:
    """Time to first token of one prompt, all of which goes through all layers unless `skip_unseen`."""
    times = prefill_times_s(bench, recipe, num_tokens, skip_unseen)
    return row(name, "s", times, bench.prefill_floor_s(recipe, num_tokens), peer, reach)


def prefill_times_s(bench: Bench, recipe: Recipe, num_tokens: int, skip_unseen: bool = False) -> list[float]:
    """Seconds to the first token of one prompt after the other."""
    engine = bench.engine(recipe, num_tokens + 1, skip_unseen=skip_unseen)
    layers = bench.shape.num_layers
    drain_after(engine, prompt_request("warm", min(num_tokens, 4 * bench.args.step_tokens + 700), recipe, layers))
    times = []
    for index in range(bench.args.repeats):
        times.append(first_token_s(engine, prompt_request(f"r{index}", num_tokens, recipe, layers)))
        drain(engine)
    return times


def drain_after(engine: Engine, request: Request) -> None:
    """Run one request to its end."""
    engine.add(request)
    drain(engine)


def row(
    name: str, unit: str, values: Sequence[float], floor: float | None, peer: float | None, reach: float | None
) -> Row:
    """The median of some values as a row."""
    return Row(name, unit, statistics.median(values), (min(values), max(values)), floor, peer, reach)


def tpot(
    bench: Bench, name: str, recipe: Recipe, reach: float, peer: float | None, kv_dtype: KVDtypeName = "model"
) -> Row:
    """Time per token after a prompt of 131,072."""
    times = decode_times_ms(bench, recipe, LONG, 64, kv_dtype)
    return row(name, "ms", times, bench.decode_floor_s(recipe, LONG, kv_dtype=kv_dtype) * 1e3, peer, reach)


def decode_times_ms(
    bench: Bench, recipe: Recipe, num_tokens: int, count: int, kv_dtype: KVDtypeName = "model"
) -> list[float]:
    """Milliseconds of each of so many tokens after a prompt."""
    engine = bench.engine(recipe, num_tokens + count + 8, kv_dtype=kv_dtype)
    request = prompt_request("r", num_tokens, recipe, bench.shape.num_layers, max_tokens=count + 4)
    engine.add(request)
    while request.num_generated_tokens < 4:  # the graph is captured
        engine.step()
    times = []
    while engine.has_work:
        start = time.perf_counter()
        engine.step()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def decode_batch(bench: Bench, name: str, recipes: Sequence[Recipe], reach: float | None) -> Row:
    """Tokens a second of 16 sequences that decode after prompts of 8,192 tokens."""
    count, batch = 96, 16
    engine = bench.engine(Recipe(), SHORT + count + 8, max_running=batch)
    requests = [
        prompt_request(f"r{at}", SHORT, recipes[at % len(recipes)], bench.shape.num_layers, max_tokens=count)
        for at in range(batch)
    ]
    for request in requests:
        engine.add(request)
    while any(request.num_generated_tokens < 2 for request in requests):
        engine.step()
    rates = []
    while not any(request.finish_reason for request in requests):
        start = time.perf_counter()
        done = sum(request.num_generated_tokens for request in requests)
        for _ in range(8):
            engine.step()
        rates.append((sum(r.num_generated_tokens for r in requests) - done) / (time.perf_counter() - start))
    floor_s = sum(bench.decode_floor_s(recipe, SHORT, 0) for recipe in recipes) / len(recipes)
    kv_s = sum(bench.decode_floor_s(recipe, SHORT) - bench.decode_floor_s(recipe, SHORT, 0) for recipe in recipes)
    floor = batch / (floor_s + batch * kv_s / len(recipes))
    return row(name, "tok/s", rates[:-1] or rates, floor, None, reach)


WHEN = (0.1, 0.3, 0.5, 0.7, 0.9)
"""After which shares of a long step's time newcomers come."""


def behind_ms(engine: Engine, request: Request, after_ms: float) -> float:
    """Milliseconds to the first token of a request that comes so long from now, whatever runs then."""
    comes_s = time.monotonic() + after_ms / 1e3
    coming = [request]

    def take() -> None:
        if coming and time.monotonic() >= comes_s:
            engine.add(coming.pop())

    def between_layers() -> None:
        take()
        engine.interrupt()

    while request.first_token_s is None:
        engine.step(between_layers)
        take()
    return (request.first_token_s - comes_s) * 1e3


def behind_a_long_prompt(bench: Bench) -> list[Row]:
    """First token of 500 tokens, idle and during the prefill of 600,000; and a step's time, which a cancel waits."""
    engine = bench.engine(SLIDING, 600_001, max_running=4)
    layers = bench.shape.num_layers
    idle = []
    for index in range(5):
        idle.append(first_token_s(engine, prompt_request(f"idle{index}", 500, SLIDING, layers)) * 1e3)
        drain(engine)
    long = prompt_request("long", 600_000, SLIDING, layers)
    engine.add(long)
    for _ in range(8):
        engine.step()
    step = timed(engine.step) * 1e3
    behind = [
        behind_ms(engine, prompt_request(f"b{at}", 500, SLIDING, layers), share * step) for at, share in enumerate(WHEN)
    ]
    cancel = timed(lambda: engine.cancel("long")) * 1e3
    drain(engine)
    idle_ms = statistics.median(idle)
    return [
        row("500 tokens, idle: TTFT", "ms", idle[1:], None, None, None),
        row("500 tokens behind 600k: TTFT", "ms", behind, None, None, 2 * idle_ms),
        row("a step of the 600k prompt: most that a cancel waits", "ms", [step + cancel], None, None, None),
    ]


def transformers_ttft(bench: Bench, num_tokens: int) -> float:
    """The same weights through transformers' own layers and attention (SDPA), in one forward: its prefill."""
    model = bench.loaded.model
    model.config._attn_implementation = "sdpa"
    try:
        ids = torch.randint(3, VOCAB_SIZE, (1, num_tokens), device=bench.device)
        with torch.inference_mode():
            model(ids[:, :4096], use_cache=True, logits_to_keep=1)
            return timed(lambda: model(ids, use_cache=True, logits_to_keep=1))
    finally:
        model.config._attn_implementation = ATTENTION_NAME


def in_8_bits(bench: Bench, kv_dtype: KVDtypeName) -> list[Row]:
    """Next tokens after 131,072 that all layers look back at, KV kept in 8 bits; its error and its bytes a token."""
    args = bench.args
    recipes = {name: RECIPES[name] for name in ("full", "sliding")}
    errors = check_attention(bench.shape, recipes, LONG, args.step_tokens, args.block_tokens, bench.device, kv_dtype)
    name = f"TPOT after 131k, full decode, {kv_dtype} KV"
    kib = bench.shape.num_layers * bench.shape.pool_bytes_per_token_layer(kv_dtype) / 1024
    in_16_bits = bench.shape.num_layers * bench.shape.bytes_per_token_layer / 1024
    return [
        tpot(bench, name, RECIPES["full-decode"], 10.5, None, kv_dtype),
        Row(f"KV of a token, {kv_dtype}", "KiB", kib, (kib, kib), None, in_16_bits),
        *(Row(f"error of {what}", "%", 100 * error, (0.0, 100 * error)) for what, error in errors.items()),
    ]


Measure = Callable[[Bench], Sequence[Row]]


def growth(bench: Bench) -> list[Row]:
    """How TTFT grows with the prompt, all sliding."""
    rows = []
    before = None
    for num_tokens in (65_536, 131_072, 262_144, 524_288, 1_000_000):
        measured = ttft(bench, f"TTFT {num_tokens:,}, all sliding", SLIDING, num_tokens)
        rows.append(measured)
        if before is not None:
            ratio = (measured.ours / before[1]) ** (1 / ((num_tokens / before[0]) / 2))
            rows.append(Row(f"growth to {num_tokens:,}, per doubling", "x", ratio, (ratio, ratio), 2.0, None, 2.05))
        before = (num_tokens, measured.ours)
    return rows


ROWS: dict[str, Measure] = {
    "ttft-sliding": lambda b: [
        ttft(b, "TTFT 131k, all sliding", SLIDING, LONG, 1.9),
        ttft(b, "TTFT 131k, all sliding, unseen skipped", SLIDING, LONG, 1.9, skip_unseen=True),
    ],
    "ttft-lookback": lambda b: [
        ttft(b, "TTFT 131k, + tail, every fourth layer looks back", RECIPES["lookback"], LONG, 2.0),
        ttft(b, "TTFT 131k, + tail, nine of 6..22, unseen skipped", LOW_LOOKBACK, LONG, 2.0, skip_unseen=True),
    ],
    "ttft-quarter": lambda b: [ttft(b, "TTFT 131k, a quarter full", RECIPES["quarter"], LONG, 4.2)],
    "ttft-full": lambda b: [ttft(b, "TTFT 131k, full", RECIPES["full"], LONG, 9.2, transformers_ttft(b, LONG))],
    "tpot-sliding": lambda b: [tpot(b, "TPOT after 131k, all sliding", SLIDING, 3.6, None)],
    "tpot-full": lambda b: [tpot(b, "TPOT after 131k, full decode", RECIPES["full-decode"], 10.5, None)],
    "tpot-full-int8": lambda b: in_8_bits(b, "int8"),
    "tpot-full-fp8": lambda b: in_8_bits(b, "fp8"),
    "decode-batch": lambda b: [decode_batch(b, "16 x 8k, decode, all sliding", [SLIDING], 3000)],
    "decode-mixed": lambda b: [decode_batch(b, "16 x 8k, decode, four recipes", list(RECIPES.values())[:4], None)],
    "behind": behind_a_long_prompt,
    "growth": growth,
    "million": lambda b: [
        ttft(b, "TTFT 1M, all sliding, unseen skipped", SLIDING, MILLION, 15.0, skip_unseen=True),
        ttft(b, "TTFT 1M, a quarter full", RECIPES["quarter"], MILLION),
    ],
}


def print_rows(rows: Sequence[Row]) -> None:
    """The table."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"

    print(f"{'':52}{'ours':>10}{'spread':>20}{'floor':>9}{'peer':>9}{'reach':>9}")
    for each in rows:
        spread = f"{number(each.spread[0])}..{number(each.spread[1])}"
        print(
            f"{each.name:52}{number(each.ours):>10}{spread:>20}{number(each.floor):>9}{number(each.peer):>9}"
            f"{number(each.reach):>9} {each.unit}",
            flush=True,
        )


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--step-tokens", type=int, default=16384, help="the engine's tokens a step")
    parser.add_argument("--block-tokens", type=int, default=64, help="tokens of a KV block")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    bench = Bench(args)
    print(f"{workload.hardware(bench.device)}; {bench.rates.matmul_flops / 1e12:.0f} TFLOP/s, ", end="")
    print(f"{bench.rates.copy_bytes / 1e12:.2f} TB/s; {bench.parameters / 1e9:.2f} G parameters", flush=True)
    errors = check_attention(bench.shape, RECIPES, LONG, args.step_tokens, args.block_tokens, bench.device)
    errors |= check_tokens(bench.loaded, RECIPES, 6000, args.step_tokens // 4, args.block_tokens)
    print("against the oracle: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()), flush=True)
    rows: list[Row] = []
    for name in args.rows:
        measured = ROWS[name](bench)
        print_rows(measured)
        rows += measured
        gc.collect()
        torch.cuda.empty_cache()
    print_rows(rows)
    summary = {
        "benchmark": "gpu",
        "hardware": workload.hardware(bench.device),
        "versions": workload.versions(),
        "date": workload.today(),
        "command": workload.command("benchmarks.bench_gpu"),
        "matmul_tflops": round(bench.rates.matmul_flops / 1e12, 1),
        "copy_tb_per_s": round(bench.rates.copy_bytes / 1e12, 3),
        "errors_against_oracle": errors,
        "rows": [
            asdict(each) for each in rows
        ],
    }  # fmt: skip
    print("\n" + json.dumps(summary))


if __name__ == "__main__":
    main()
