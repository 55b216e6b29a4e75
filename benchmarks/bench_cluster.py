"""What the hops cost, and what a second replica brings: engine alone, embedded service, cluster under Ray Serve.

    overhead      a tiny random model, so that hops are all there is: time to first token and tokens a second of one
                  stream, and of --streams at once, each way in turn
    throughput    a model that takes --token-ms for each token and hardly any CPU, as a GPU would: prompts a second of
                  one replica and of two, asked through one gateway

Prints a table for each, and everything as one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import workload
from services.client import NO_RETRY, AsyncClient
from services.cluster import running_cluster
from services.config import ServeConfig, load_config
from services.embedded import running_service
from services.replica.parts import running_parts
from services.replica.ray_app import RayReplica
from swaa_runtime.batch import Batch
from swaa_runtime.outputs import Finished, TokenOutput
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import SamplingParams, new_request
from swaa_runtime.runner import ModelRunner

PROMPT_TOKENS, NEW_TOKENS = 32, 128
PACE_VARIABLE = "BENCH_TOKEN_MS"
Ask = Callable[[], Awaitable["Answer"]]


@dataclass(frozen=True, slots=True)
class Answer:
    """One turn, in seconds."""

    ttft_s: float
    total_s: float


class PacedRunner(ModelRunner):
    """Takes as long for each token as the environment says, asleep: what a GPU looks like from the CPU."""

    def forward(
        self, batch: Batch, rows: torch.Tensor | None = None, between_layers: Callable[[], None] | None = None
    ) -> torch.Tensor:
        """See ModelRunner."""
        time.sleep(batch.token_ids.shape[0] * float(os.environ[PACE_VARIABLE]) / 1e3)
        return super().forward(batch, rows, between_layers)


class PacedReplica(RayReplica):
    """A replica of it."""

    runner = PacedRunner


def settings(folder: Path, model: Path, **changes: Any) -> ServeConfig:
    """Of a service around the tiny model."""
    return load_config(
        model=str(model),
        dtype="float32",
        kv_memory_mib=256,
        listen="127.0.0.1:0",
        http_listen="",
        cache_dir=folder / "cache",
        state_dir=folder / "state",
        log_level="WARNING",
        **changes,
    )


def prompt_of(num_tokens: int, rng: random.Random) -> list[int]:
    """Random token ids."""
    return rng.choices(range(1000, 40000), k=num_tokens)


def through_grpc(client: AsyncClient, num_tokens: int, new_tokens: int, rng: random.Random) -> Ask:
    """A turn without a session, as any client sends it."""

    async def ask() -> Answer:
        started_s, first_s = time.perf_counter(), 0.0
        prompt = prompt_of(num_tokens, rng)
        async for _ in client.stream(prompt, recipe="full", max_tokens=new_tokens, ignore_eos=True):
            if not first_s:
                first_s = time.perf_counter() - started_s
        return Answer(first_s, time.perf_counter() - started_s)

    return ask


@contextlib.asynccontextmanager
async def engine_alone(config: ServeConfig) -> AsyncIterator[Ask]:
    """The engine's thread and its output streams, in this process."""
    async with running_parts(config) as parts:
        rng = random.Random(0)

        async def ask() -> Answer:
            started_s, first_s = time.perf_counter(), 0.0
            sampling = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True)
            tokens = prompt_of(PROMPT_TOKENS, rng)
            request = new_request(uuid.uuid4().hex, tokens, Recipe(), parts.loaded.shape.num_layers, sampling)
            stream = parts.engine.submit(request)
            while not isinstance(output := await stream.get(), Finished):
                if isinstance(output, TokenOutput) and not first_s:
                    first_s = time.perf_counter() - started_s
            return Answer(first_s, time.perf_counter() - started_s)

        yield ask


@contextlib.asynccontextmanager
async def embedded(config: ServeConfig) -> AsyncIterator[Ask]:
    """Gateway and replica in this process, asked over gRPC."""
    async with running_service(config) as server, AsyncClient(f"127.0.0.1:{server.port}", retry=NO_RETRY) as client:
        yield through_grpc(client, PROMPT_TOKENS, NEW_TOKENS, random.Random(0))


@contextlib.contextmanager
def cluster_of(config: ServeConfig, num_replicas: int, replica: type[RayReplica] | None = None) -> Iterator[str]:
    """Replicas under Ray Serve and a gateway before them; its address."""
    options = {"num_cpus": "0.1"}
    with running_cluster(config, num_replicas, 1, options, replica) as cluster:
        yield cluster.gateways[0].address


async def measure_way(ask: Ask, repeats: int, streams: int) -> dict[str, float]:
    """Medians of single streams, then of all at once."""
    await ask()
    alone = [await ask() for _ in range(repeats)]
    started_s = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(streams)))
    together_s = time.perf_counter() - started_s
    return {
        "ttft_ms": round(statistics.median(answer.ttft_s for answer in alone) * 1e3, 2),
        "tokens_s": round(statistics.median(NEW_TOKENS / answer.total_s for answer in alone)),
        "tokens_s_together": round(streams * NEW_TOKENS / together_s),
    }


async def measure_throughput(address: str, num_prompts: int, prompt_tokens: int) -> float:
    """Prompts a second, eight asked at a time."""
    async with AsyncClient(address, retry=NO_RETRY) as client:
        ask = through_grpc(client, prompt_tokens, 4, random.Random(1))
        await asyncio.gather(*(ask() for _ in range(4)))
        waiting = list(range(num_prompts))

        async def work() -> None:
            while waiting:
                waiting.pop()
                await ask()

        started_s = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(8)))
        return num_prompts / (time.perf_counter() - started_s)


async def in_process(way: Any, config: ServeConfig, args: argparse.Namespace) -> dict[str, float]:
    """Measure one of the ways that need no cluster."""
    async with way(config) as ask:
        return await measure_way(ask, args.repeats, args.streams)


async def in_cluster(address: str, args: argparse.Namespace) -> dict[str, float]:
    """Measure through a gateway of a cluster."""
    async with AsyncClient(address, retry=NO_RETRY) as client:
        ask = through_grpc(client, PROMPT_TOKENS, NEW_TOKENS, random.Random(0))
        return await measure_way(ask, args.repeats, args.streams)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All parts, each table as it is ready."""
    torch.set_num_threads(1)  # as Ray sets it for replicas
    model = workload.make_tiny_model(folder, workload.model_folder(None, torch.bfloat16))
    config = settings(folder, model)
    ways = {
        "engine alone": asyncio.run(in_process(engine_alone, config, args)),
        "embedded service": asyncio.run(in_process(embedded, config, args)),
    }
    with cluster_of(config, 1) as address:
        ways["gateway and Ray Serve"] = asyncio.run(in_cluster(address, args))
    print(f"\n{'':24}{'TTFT ms':>9}{'tokens/s':>10}{f'{args.streams} streams, tokens/s':>22}")
    for name, row in ways.items():
        print(f"{name:24}{row['ttft_ms']:>9.2f}{row['tokens_s']:>10}{row['tokens_s_together']:>22}", flush=True)
    os.environ[PACE_VARIABLE] = str(args.token_ms)
    rates: dict[int, float] = {}
    for num_replicas in (1, 2):
        with cluster_of(config, num_replicas, PacedReplica) as address:
            rates[num_replicas] = asyncio.run(measure_throughput(address, args.prompts, args.prompt_tokens))
        print(
            f"{num_replicas} replicas: {rates[num_replicas]:.2f} prompts/s of {args.prompt_tokens} tokens", flush=True
        )
    print(f"two replicas do {rates[2] / rates[1]:.2f} times what one does")
    return {
        "hardware": workload.hardware(torch.device("cpu")),
        "overhead": ways,
        "prompts_s": {str(count): round(rate, 3) for count, rate in rates.items()},
        "ratio": round(rates[2] / rates[1], 3),
    }


def main() -> None:
    """Measure, print, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="single streams of each way")
    parser.add_argument("--streams", type=int, default=8, help="streams at once")
    parser.add_argument("--token-ms", type=float, default=1.0, help="what a token takes on the paced model")
    parser.add_argument("--prompts", type=int, default=48, help="prompts of the throughput measurement")
    parser.add_argument("--prompt-tokens", type=int, default=512, help="their length")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="swaa-bc-", ignore_cleanup_errors=True) as folder:
        results = measure(args, Path(folder))
    where = {"versions": workload.versions(), "date": workload.today()}
    run_as = {"command": workload.command("benchmarks.bench_cluster"), "arguments": vars(args)}
    print("\n" + json.dumps({"benchmark": "cluster", **where, **run_as, **results}))


if __name__ == "__main__":
    main()
