"""What HTTP costs beside gRPC: first token and tokens a second of the same service, and of the engine alone.

A tiny random model, so that hops are all there is. The ways are asked in turn, so that whatever else the machine does
meets all of them. Prints a table, and everything as one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks import workload
from benchmarks.bench_cluster import (
    NEW_TOKENS,
    PROMPT_TOKENS,
    Answer,
    Ask,
    engine_alone,
    measure_way,
    prompt_of,
    settings,
    through_grpc,
)
from services.client import NO_RETRY, AsyncClient
from services.embedded import running_service


def through_http(client: httpx.AsyncClient, rng: random.Random) -> Ask:
    """A streamed completion, as any client sends it."""

    async def ask() -> Answer:
        started_s, first_s = time.perf_counter(), 0.0
        body = {
            "model": "smollm2",
            "prompt": prompt_of(PROMPT_TOKENS, rng),
            "max_tokens": NEW_TOKENS,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "logprobs": 0,  # a chunk for each token, also for those that are no text yet
        }
        async with client.stream("POST", "/v1/completions", json=body, headers={"x-swaa-recipe": "full"}) as answer:
            async for line in answer.aiter_lines():
                if not first_s and line.startswith("data: ") and '"text_offset"' in line:
                    first_s = time.perf_counter() - started_s
        return Answer(first_s, time.perf_counter() - started_s)

    return ask


async def measure(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Each way by its name."""
    torch.set_num_threads(1)
    model = workload.make_tiny_model(folder, workload.model_folder(None, torch.bfloat16))
    ways: dict[str, dict[str, float]] = {}
    async with engine_alone(settings(folder, model)) as ask:
        ways["engine alone"] = await measure_way(ask, args.repeats, args.streams)
    config = settings(folder, model).model_copy(update={"http_listen": "127.0.0.1:0"})
    async with (
        running_service(config) as server,
        AsyncClient(f"127.0.0.1:{server.port}", retry=NO_RETRY) as grpc_client,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.http_port}", timeout=60) as http_client,
    ):
        asks: Mapping[str, Ask] = {
            "gRPC": through_grpc(grpc_client, PROMPT_TOKENS, NEW_TOKENS, random.Random(0)),
            "HTTP": through_http(http_client, random.Random(0)),
        }
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in asks}
        for _ in range(args.rounds):
            for name, ask in asks.items():
                rounds[name].append(await measure_way(ask, args.repeats, args.streams))
    for name, rows in rounds.items():
        ways[name] = {figure: sorted(row[figure] for row in rows)[len(rows) // 2] for figure in rows[0]}
    return ways


def main() -> None:
    """Measure, print, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="single streams of each way and round")
    parser.add_argument("--streams", type=int, default=8, help="streams at once")
    parser.add_argument("--rounds", type=int, default=3, help="gRPC and HTTP in turn, so many times; medians")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="swaa-bh-", ignore_cleanup_errors=True) as folder:
        ways = asyncio.run(measure(args, Path(folder)))
    print(f"\n{'':16}{'TTFT ms':>9}{'tokens/s':>10}{f'{args.streams} streams, tokens/s':>22}")
    for name, row in ways.items():
        print(f"{name:16}{row['ttft_ms']:>9.2f}{row['tokens_s']:>10}{row['tokens_s_together']:>22}")
    results: dict[str, Any] = {"hardware": workload.hardware(torch.device("cpu")), "ways": ways}
    where = {"versions": workload.versions(), "date": workload.today()}
    run_as = {"command": workload.command("benchmarks.bench_http"), "arguments": vars(args)}
    print("\n" + json.dumps({"benchmark": "http", **where, **run_as, **results}))


if __name__ == "__main__":
    main()
