"""Options that commands of this package share."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_model_options(command: argparse.ArgumentParser) -> None:
    """Which model, and on what."""
    command.add_argument("--model", type=Path, help="Hugging Face folder or GGUF file (default: the shipped model)")
    command.add_argument("--device", default="cpu", help="cpu or cuda")
    command.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))


def add_batch_options(command: argparse.ArgumentParser) -> None:
    """How a model answers many prompts that are all known."""
    command.add_argument(
        "--runner", default="engine", choices=("engine", "batched"), help="batched: faster on a GPU, same answers"
    )
    command.add_argument(
        "--batch-tokens", type=int, default=131072, help="prompt tokens of a batch of --runner batched"
    )


def add_engine_options(command: argparse.ArgumentParser) -> None:
    """Sizes of an engine."""
    command.add_argument("--max-running", type=int, default=8, help="requests that hold KV memory at a time")
    command.add_argument("--max-step-tokens", type=int, default=1024, help="tokens per step; bounds attention's memory")


def add_shard_option(command: argparse.ArgumentParser) -> None:
    """Which part of the work is this process's."""
    command.add_argument(
        "--shard",
        type=_shard,
        default=(0, 1),
        help="I/N: every Nth sample from I on, for processes side by side",
    )


def _shard(text: str) -> tuple[int, int]:
    shard, slash, count = text.partition("/")
    if not slash or not shard.isdigit() or not count.isdigit() or not 0 <= int(shard) < int(count):
        raise argparse.ArgumentTypeError(f"{text!r}: must be I/N with 0 <= I < N")
    return int(shard), int(count)
