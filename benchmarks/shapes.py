"""What `bench_sla` and `bench_prediction` serve: the model, and the settings of a service that suit it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks import workload


@dataclass(frozen=True, slots=True)
class Shape:
    """A model and loads that suit it. `bench_sla`'s lengths are as `swaa load` takes them.

    Attributes:
        fixed: recipes to compare the planner with; predicted: those that predictions are made for.
        tpot, min_quality: what `bench_sla`'s requests ask for by class (see `sla_policies.Objectives`).
        idle_lengths, loaded_lengths: prompts of `bench_prediction`, the latter's shortest and longest.
        settings: of the service, by the names of `ServeConfig`.
    """

    lengths: str
    max_tokens: str
    fixed: tuple[str, ...]
    predicted: tuple[str, ...]
    idle_lengths: tuple[int, ...]
    loaded_lengths: tuple[int, int]
    settings: Mapping[str, str] = field(default_factory=dict)
    tpot: Mapping[str, float] = field(default_factory=dict)
    min_quality: Mapping[str, float] = field(default_factory=dict)


SHAPES = {
    "default": Shape(
        lengths="2000-7900",
        max_tokens="8-24",
        fixed=("full", "wide-tail", "few-full-tail", "middle-tail", "sliding-tail"),
        predicted=("full", "wide-tail", "sliding-tail", "few-full-tail", "interleaved", "sliding"),
        idle_lengths=(300, 730, 1700, 2900, 5200, 7700),
        loaded_lengths=(300, 4500),
        tpot={"interactive": 4.0, "balanced": 5.0, "quality": 15.0},  # CPUs differ by more than classes do
        min_quality={"interactive": 0.8},  # whatever keeps less of this model's quality is hardly faster
    ),
    "tiny": Shape(
        lengths="50:0.5,200:0.3,800:0.2",
        max_tokens="2-6",
        fixed=("full", "sliding"),
        predicted=("full", "sliding"),
        idle_lengths=(100, 300, 900),
        loaded_lengths=(100, 900),
        settings={"dtype": "float32", "kv_memory_mib": "64"},
    ),
    "qwen3-4b": Shape(
        lengths="2000:0.35,8000:0.35,24000:0.2,64000:0.1",
        max_tokens="16-128",
        fixed=("full", "interleaved-wide", "interleaved-sinks", "quarter"),
        predicted=("full", "interleaved-wide", "interleaved", "quarter", "sliding-decode", "sliding"),
        idle_lengths=(700, 3000, 11000, 40000, 90000, 131000),
        loaded_lengths=(1000, 60000),
        settings={
            "kv_memory_mib": "49152",
            "swap_memory_mib": "32768",
            "max_step_tokens": "8192",
            "block_size_tokens": "64",
            "attention_backend": "triton",
        },
    ),
}


def add_service_options(parser: argparse.ArgumentParser) -> None:
    """What is served, and on what."""
    parser.add_argument("--model-shape", choices=sorted(SHAPES), default="default")
    parser.add_argument("--model", help="Hugging Face folder, instead of a shape's random weights")
    parser.add_argument("--tokenizer", type=Path, help="its folder, for random weights (default: the shipped)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--setting", action="append", default=[], help="name=value of the service; may be repeated")
    parser.add_argument("--cache", type=Path, default=workload.REPO / ".cache" / "swaa", help="models, cost profiles")


def model_folder(args: argparse.Namespace, folder: Path) -> Path | None:
    """The model to serve, made in `folder` if its weights are random; None is the default one."""
    if args.model is not None:
        return Path(args.model)
    if args.model_shape == "default":
        return None
    tokenizer = args.tokenizer or workload.model_folder(None, torch.bfloat16)
    if args.model_shape == "tiny":
        return workload.make_tiny_model(folder, tokenizer)
    return workload.make_qwen3_4b(folder, tokenizer, torch.device(args.device))


def service_settings(args: argparse.Namespace, folder: Path, model: Path | None) -> dict[str, str]:
    """Settings of the service, by the names of `ServeConfig`. Its state goes to `folder`."""
    settings = {
        **SHAPES[args.model_shape].settings,
        "device": args.device,
        "http_listen": "",
        "state_dir": str(folder / "state"),
        "cache_dir": str(args.cache),
    }
    settings |= {} if model is None else {"model": str(model)}
    return settings | dict(part.split("=", 1) for part in args.setting)
