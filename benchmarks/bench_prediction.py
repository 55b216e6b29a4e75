"""How far predicted time to first token is off: what `Accepted` says against what `Finish` says, over the wire.

    python -m benchmarks.bench_prediction                                        # default model, CPU
    python -m benchmarks.bench_prediction --device cuda --model-shape qwen3-4b   # random weights of that shape

The service runs in a process of its own, with the cost profile that its cache has, or a quick one; --calibrate measures
a thorough one first. First idle: one prompt at a time, of lengths that calibration does not use, under recipes it does
not use. Then loaded: open-loop Poisson arrivals of mixed lengths and recipes, as many as keep the engine busy for
`--utilisation` of the time by the service's own prediction. Prompts are random tokens, so that no two share anything.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import torch

from benchmarks import workload
from benchmarks.served import calibrate, served
from benchmarks.shapes import SHAPES, add_service_options, model_folder, service_settings
from services.gateway.limits import GRPC_OPTIONS
from services.gateway.sla import RECIPE_HEADER, SLA_HEADER
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.pb.swaa.v1 import long_context_pb2_grpc as pb_grpc
from services.replica.calibrate import quantile, relative_error

WARM_UP = 8
"""Requests at a time that nothing is told of: what a first use costs is not a prompt's."""

SLA_CLASS = "quality"
VOCABULARY = 1000
"""Token ids are drawn from the first so many, which every model has."""


@dataclass(frozen=True, slots=True)
class Question:
    """One request: a random prompt under a recipe, and how many tokens to answer."""

    recipe: str
    prompt_tokens: int
    max_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What was predicted for it and what happened, in ms."""

    question: Question
    predicted_ms: float
    measured_ms: float
    queue_ms: float

    @property
    def error(self) -> float:
        """Of the prediction, relative to what happened."""
        return relative_error(self.predicted_ms, self.measured_ms)


async def ask(stub: Any, question: Question) -> Answer:
    """Run one request to its end."""
    token_ids = random.Random(question.seed).choices(range(VOCABULARY), k=question.prompt_tokens)
    request = pb.GenerateRequest(
        prompt=pb.Prompt(token_ids=token_ids), sampling=pb.Sampling(max_tokens=question.max_tokens, ignore_eos=True)
    )
    metadata = ((RECIPE_HEADER, question.recipe), (SLA_HEADER, SLA_CLASS))
    predicted_ms = 0.0
    async for event in stub.Generate(request, metadata=metadata):
        if event.HasField("accepted"):
            predicted_ms = event.accepted.prediction.ttft_ms
        if event.HasField("finish"):
            timings = event.finish.timings
            return Answer(question, predicted_ms, timings.ttft_ms, timings.queue_ms)
    raise RuntimeError(f"the stream of {question} ended without a Finish")


async def warm_up(stub: Any, num_tokens: int, recipes: Sequence[str]) -> None:
    """Each recipe alone, then several at a time."""
    for index, recipe in enumerate(recipes):
        await ask(stub, Question(recipe, num_tokens, 2, index))
    some = [Question(recipes[at % len(recipes)], num_tokens, 16, -1 - at) for at in range(WARM_UP)]
    await asyncio.gather(*(ask(stub, question) for question in some))


async def run_idle(stub: Any, lengths: Sequence[int], recipes: Sequence[str]) -> list[Answer]:
    """Each length under each recipe, one at a time."""
    answers = []
    for length in lengths:
        for index, recipe in enumerate(recipes):
            answers.append(await ask(stub, Question(recipe, length, 2, seed=length * 10 + index)))
            print(_line(answers[-1]), flush=True)
    return answers


async def run_loaded(stub: Any, questions: Sequence[Question], mean_gap_s: float, rng: random.Random) -> list[Answer]:
    """Poisson arrivals that wait for nobody: a slow service gets them all the same."""
    running = []
    async with asyncio.TaskGroup() as group:
        for question in questions:
            running.append(group.create_task(ask(stub, question)))
            await asyncio.sleep(rng.expovariate(1.0 / mean_gap_s))
    return [task.result() for task in running]


def make_questions(count: int, lengths: tuple[int, int], recipes: Sequence[str], rng: random.Random) -> list[Question]:
    """Mixed lengths (log-uniform), recipes and answers' lengths."""
    low, high = (math.log(length) for length in lengths)
    return [
        Question(rng.choice(recipes), round(math.exp(rng.uniform(low, high))), rng.randint(4, 32), rng.getrandbits(40))
        for _ in range(count)
    ]


async def mean_work_s(stub: Any, questions: Sequence[Question]) -> float:
    """Predicted time that the engine needs for one of these, alone, on average."""
    total_ms = 0.0
    for question in questions:
        request = pb.PlanRequest(prompt_tokens=question.prompt_tokens, max_tokens=question.max_tokens)
        plan = await stub.Plan(request, metadata=((RECIPE_HEADER, question.recipe), (SLA_HEADER, SLA_CLASS)))
        figures = plan.chosen.prediction
        total_ms += figures.ttft_ms + question.max_tokens * figures.tpot_ms
    return total_ms / len(questions) / 1e3


def summary(answers: Sequence[Answer]) -> dict[str, float]:
    """Median and 95th percentile of the relative error, and the times it is of."""
    errors = [answer.error for answer in answers]
    return {
        "requests": len(answers),
        "error_median": round(quantile(errors, 0.5), 4),
        "error_p95": round(quantile(errors, 0.95), 4),
        "ttft_ms_median": round(quantile([answer.measured_ms for answer in answers], 0.5), 1),
        "ttft_ms_p95": round(quantile([answer.measured_ms for answer in answers], 0.95), 1),
    }


def _line(answer: Answer) -> str:
    question = answer.question
    return (
        f"  {question.recipe:16}{question.prompt_tokens:8,}{answer.predicted_ms:12,.0f}{answer.measured_ms:12,.0f}"
        f"{answer.queue_ms:12,.0f}{answer.error:9.1%}"
    )


def _print(title: str, answers: Sequence[Answer]) -> None:
    figures = summary(answers)
    print(
        f"{title}: {figures['requests']} requests, TTFT off by {figures['error_median']:.1%} (median), "
        f"{figures['error_p95']:.1%} (95th percentile)\n",
        flush=True,
    )


async def measure(args: argparse.Namespace, address: str) -> dict[str, Any]:
    """Both halves against a running service."""
    shape, rng = SHAPES[args.model_shape], random.Random(args.seed)
    lengths = args.idle_lengths or shape.idle_lengths
    async with grpc.aio.insecure_channel(address, options=GRPC_OPTIONS) as channel:
        stub: Any = pb_grpc.LongContextStub(channel)  # type: ignore[no-untyped-call]
        print(f"  {'recipe':16}{'tokens':>8}{'predicted':>12}{'measured':>12}{'queued':>12}{'error':>9}")
        await warm_up(stub, min(lengths), shape.predicted)
        idle = await run_idle(stub, lengths, shape.predicted)
        _print("idle", idle)
        questions = make_questions(args.requests, args.loaded_lengths or shape.loaded_lengths, shape.predicted, rng)
        gap_s = await mean_work_s(stub, questions) / args.utilisation
        started_s = time.monotonic()
        loaded = await run_loaded(stub, questions, gap_s, rng)
        for answer in loaded:
            print(_line(answer))
        _print(f"loaded at {args.utilisation}", loaded)
        return {
            "idle": summary(idle),
            "loaded": {**summary(loaded), "mean_gap_s": round(gap_s, 3)},
            "loaded_s": round(time.monotonic() - started_s, 1),
            "answers": [asdict(answer) for answer in (*idle, *loaded)],
        }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_service_options(parser)
    parser.add_argument("--calibrate", action="store_true", help="measure the cost profile first, thoroughly")
    parser.add_argument("--idle-lengths", type=int, nargs="+", help="prompt tokens (default: by shape)")
    parser.add_argument("--loaded-lengths", type=int, nargs=2, help="shortest and longest (default: by shape)")
    parser.add_argument("--requests", type=int, default=60, help="of the loaded half")
    parser.add_argument("--utilisation", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Measure, print, and everything as one line of JSON."""
    args = _arguments()
    with tempfile.TemporaryDirectory(prefix="swaa-bp-") as name:
        folder = Path(name)
        settings = service_settings(args, folder, model_folder(args, folder))
        if args.calibrate:
            calibrate(settings)
        with served(folder, settings) as address:
            results = asyncio.run(measure(args, address))
    print(
        json.dumps(
            {
                "benchmark": "prediction",
                "hardware": workload.hardware(torch.device(args.device)),
                "versions": workload.versions(),
                "date": workload.today(),
                "command": workload.command("benchmarks.bench_prediction"),
                "model": args.model or args.model_shape,
                "utilisation": args.utilisation,
                **results,
            }
        )
    )


if __name__ == "__main__":
    main()
