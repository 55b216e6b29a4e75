"""LoRA by peft: put beside a model for training, written in peft's own format, merged into a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from services.quality.training import TrainConfig
from swaa_runtime.errors import ModelNotSupported
from swaa_runtime.model.adapters import BASE_FINGERPRINT, CONFIG_FILE, WEIGHTS_FILE, merge_adapter
from swaa_runtime.model.files import DATA_ONLY
from swaa_runtime.recipe import Recipe

RECIPE_METADATA = "swaa_recipe"


def add_lora(model: Any, config: TrainConfig) -> Any:
    """Put trainable LoRA modules into the model, in place; returns peft's wrapper, which `save_adapter` takes.

    Raises:
        ModelNotSupported: if peft is not installed, or the model has no module of a name in `config.targets`.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as exc:
        raise ModelNotSupported("training adapters needs peft: pip install swaa[quality]") from exc
    torch.manual_seed(config.seed)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=list(config.targets),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, lora)
    except ValueError as exc:
        raise ModelNotSupported(f"no LoRA for modules {', '.join(config.targets)}: {exc}") from exc


def save_adapter(peft_model: Any, folder: Path, base_fingerprint: str, recipe: Recipe, model_name: str) -> None:
    """Write adapter_model.safetensors and adapter_config.json; whose weights it is for and under which recipe, too."""
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(peft_model)
    metadata = {"format": "pt", BASE_FINGERPRINT: base_fingerprint, RECIPE_METADATA: json.dumps(recipe.to_mapping())}
    tensors = {name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata)
    config = json.loads(json.dumps(peft_model.peft_config["default"].to_dict(), default=_plain))
    config.update(base_model_name_or_path=model_name, inference_mode=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def save_merged(model_folder: Path, adapter_folder: Path, output: Path, dtype: torch.dtype) -> None:
    """Write a Hugging Face folder of the model with the adapter in its weights, tokenizer included."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype, use_safetensors=True, **DATA_ONLY)
    merge_adapter(model, adapter_folder)
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(model_folder, **DATA_ONLY).save_pretrained(output)


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, set) else str(value)
