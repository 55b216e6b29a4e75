"""What the measuring tools share: the model, an engine around it, prompts of exact length, and what they ran on.

Imports nothing but torch, transformers and the runtime, so that it also runs where only those are installed.
"""

from __future__ import annotations

import shutil
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from services.quality import environment
from services.quality.environment import (
    BLOCK_SIZE_TOKENS,
    REPO,
    build_engine,
    hardware,
    load_tokenizer,
    model_folder,
    today,
    versions,
)

__all__ = [
    "BLOCK_SIZE_TOKENS",
    "REPO",
    "build_engine",
    "command",
    "hardware",
    "load_tokenizer",
    "make_qwen3_4b",
    "make_tiny_model",
    "model_folder",
    "prompt_tokens",
    "today",
    "versions",
]

DOCUMENT = REPO / "services" / "cli" / "data" / "harbour_log.txt"
TINY_LAYERS = 30
"""As many as the catalogue's recipes name."""


def prompt_tokens(tokenizer: Any, num_tokens: int) -> list[int]:
    """Exactly `num_tokens` tokens of the shipped document, read again from its start when it ends."""
    token_ids: list[int] = tokenizer(DOCUMENT.read_text(encoding="utf-8"))["input_ids"]
    return list(islice(cycle(token_ids), num_tokens))


def command(module: str) -> str:
    """The command line of this run, without the folders that are this machine's own."""
    return environment.command(f"python -m {module}")


def make_tiny_model(folder: Path, tokenizer_folder: Path) -> Path:
    """A Hugging Face folder of a random model, named as the catalogue knows it, that starts in a moment."""
    model = folder / "smollm2"
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=TINY_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(model)
    _copy_tokenizer(tokenizer_folder, model)
    return model


def make_qwen3_4b(folder: Path, tokenizer_folder: Path, device: torch.device) -> Path:
    """A Hugging Face folder of Qwen3-4B's shape with random weights in bfloat16, named as the catalogue knows it.

    Its tokenizer is another model's, with fewer tokens; prompts of token ids do not mind.
    """
    model = folder / "qwen3-4b"
    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=262144,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        dtype="bfloat16",
    )
    with torch.device(device):
        made = Qwen3ForCausalLM(config).bfloat16()
    made.save_pretrained(model)
    _copy_tokenizer(tokenizer_folder, model)
    return model


def _copy_tokenizer(source: Path, target: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, target / name)
