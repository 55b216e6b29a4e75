"""Loads a full-attention decoder and its tokenizer, from a Hugging Face folder or a GGUF file.

A GGUF file is converted once into a folder (safetensors, config, tokenizer) beside a marker, and read from there after.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from swaa_runtime.attention.oracle import OracleContext
from swaa_runtime.config import KVDtypeName
from swaa_runtime.errors import ModelNotSupported
from swaa_runtime.group import Group
from swaa_runtime.model.adapters import Adapters, install_adapters
from swaa_runtime.model.attention import ATTENTION_NAME, register_attention
from swaa_runtime.model.files import DATA_ONLY, SAFE_SUFFIX, weight_files
from swaa_runtime.model.quantized import not_loaded, quantization_method
from swaa_runtime.recipe import Recipe
from swaa_runtime.shape import ModelShape
from swaa_runtime.visibility import Turn

FINGERPRINT_PIECES, FINGERPRINT_PIECE_BYTES = 256, 1 << 16
"""Weights are sampled all over their files: enough to tell models apart without reading tens of GB at every start."""

SUPPORTED_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe")

LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
"""Their angles change once the sequence outgrows the pretrained length: keys stored before would no longer fit."""

BF16_CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""x86 and Arm names of what multiplies in bfloat16."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run under the SWAA attention.

    Attributes:
        shape: of the whole model.
        fingerprint: names weights and dtype in saved sessions, and what KV was kept in if that is another dtype.
        quantized_by: the method by which weights are kept in memory; None: in the model's dtype.
        group: whose members compute it together; `model` has this rank's part. None: `model` is all of it.
    """

    model: Any
    shape: ModelShape
    eos_token_ids: frozenset[int]
    fingerprint: str
    adapters: Adapters = field(default_factory=Adapters)
    group: Group | None = None
    quantized_by: str | None = None

    @property
    def part_shape(self) -> ModelShape:
        """Of what `model` has."""
        return self.shape if self.group is None else self.shape.part(self.group.size)

    def keeping_kv_in(self, kv_dtype: KVDtypeName) -> LoadedModel:
        """The same under another fingerprint, unless KV is kept in the model's dtype: its sessions are not those."""
        if kv_dtype == "model":
            return self
        digest = hashlib.blake2b(f"{self.fingerprint} {kv_dtype}".encode(), digest_size=16)
        return replace(self, fingerprint=digest.hexdigest())


def check_supported(config: Any) -> None:
    """Raise ModelNotSupported unless the model is a decoder pretrained with full attention that we know."""
    if config.model_type not in SUPPORTED_MODEL_TYPES:
        raise ModelNotSupported(
            f"model_type is {config.model_type!r}: supported are {', '.join(SUPPORTED_MODEL_TYPES)}"
        )
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    if layer_types != {"full_attention"} or (window is not None and getattr(config, "use_sliding_window", True)):
        raise ModelNotSupported("the model was itself trained with sliding windows; SWAA adapts full-attention models")
    rope_type = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    if rope_type in LENGTH_DEPENDENT_ROPE:
        raise ModelNotSupported(
            f"RoPE of type {rope_type!r} rotates by the length so far; stored keys need absolute ones"
        )


def shape_of(config: Any, dtype: torch.dtype) -> ModelShape:
    """Read a transformers configuration."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelShape(
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        vocab_size=config.vocab_size,
        max_model_tokens=config.max_position_embeddings,
        dtype=str(dtype).removeprefix("torch."),
    )


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of that name, as `ModelShape.dtype` has it."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def fast_dtype(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> torch.dtype:
    """bfloat16 where the device computes in it; a CPU that does not is several times faster in float32.

    Args:
        cpuinfo: where Linux lists what a CPU can do; where there is no such file, float32 is safe.
    """
    if device.type == "cuda":
        return torch.bfloat16
    words = set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.exists() else set()
    return torch.bfloat16 if words & BF16_CPU_FLAGS else torch.float32


def convert_gguf(gguf_file: Path, cache_folder: Path, dtype: torch.dtype) -> Path:
    """Convert a GGUF file into a Hugging Face folder under `cache_folder`, once; returns that folder.

    Written beside and renamed, so that a conversion that was killed leaves nothing that looks finished.
    """
    stat = gguf_file.stat()
    name = f"{gguf_file.stem}-{str(dtype).removeprefix('torch.')}-{stat.st_size}"
    folder = cache_folder / name
    if folder.is_dir():
        return folder
    # Not named by process id: a container has the same one again after it was killed.
    partial = cache_folder / f"{name}.partial-{uuid.uuid4().hex}"
    partial.mkdir(parents=True)
    try:
        source: dict[str, Any] = {"gguf_file": gguf_file.name}
        loaded = AutoModelForCausalLM.from_pretrained(gguf_file.parent, dtype=torch.float32, **source, **DATA_ONLY)
        # transformers refuses to save a model that it read from GGUF; a fresh one with the same weights it saves.
        if hasattr(loaded.config, "quantization_config"):
            del loaded.config.quantization_config
        fresh: Any = AutoModelForCausalLM.from_config(loaded.config, dtype=dtype)  # type: ignore[no-untyped-call]
        fresh.load_state_dict(loaded.state_dict())
        fresh.save_pretrained(partial)
        AutoTokenizer.from_pretrained(gguf_file.parent, **source, **DATA_ONLY).save_pretrained(partial)
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process may have finished first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def load_model(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    adapters: Mapping[str, Path] | None = None,
    allow_pickle: bool = False,
) -> LoadedModel:
    """Load the weights of a Hugging Face folder, and adapters by name from theirs. Nothing in them is run.

    Weights that come quantised stay so, or not, as transformers finds right for this machine.

    Args:
        allow_pickle: read weights that are pickled, if there are no others; that runs what is in them.

    Raises:
        ModelNotSupported: for a family or an attention variant that the rule of DESIGN §3 does not cover, or an adapter
            that is not of this model; for weights that may not be read, are not all there, or are quantised in a way
            that cannot be had here.
    """
    register_attention()
    try:
        config = AutoConfig.from_pretrained(folder, **DATA_ONLY)
    except ValueError as exc:
        told = f"model {folder.name!r} is of no family known here; code of its own is not run"
        raise ModelNotSupported(told) from exc
    check_supported(config)
    files = weight_files(folder, allow_pickle)
    options: dict[str, Any] = {
        "config": config,
        "dtype": dtype,
        "attn_implementation": ATTENTION_NAME,
        "use_safetensors": files[0].suffix == SAFE_SUFFIX,
        **DATA_ONLY,
    }
    method = quantization_method(config)
    model = _read(folder, options).to(device) if method is None else _read_quantized(folder, options, method, device)
    model.eval().requires_grad_(False)
    if not hasattr(model.config, "quantization_config"):  # transformers found it right to undo it
        method = None
    loaded = wrap_model(model, _fingerprint(folder, files, dtype, method), adapters)
    return replace(loaded, quantized_by=method)


def _read(folder: Path, options: Mapping[str, Any]) -> Any:
    """The model. What its files lack, transformers would fill with random numbers."""
    read: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    model, info = read
    if missing := sorted(info["missing_keys"]):
        raise ModelNotSupported(f"{folder.name} lacks weights: {missing[0]} and {len(missing) - 1} more")
    return model


def _read_quantized(folder: Path, options: Mapping[str, Any], method: str, device: torch.device) -> Any:
    """The model, on the device at once, as some methods make of it what suits the device; and tried, as some that lack
    something notice it only when they have to compute.
    """
    try:
        model = _read(folder, {**options, "device_map": {"": device}})
        one = torch.zeros((1, 1), dtype=torch.int64, device=device)
        context = OracleContext(Recipe().resolve(model.config.num_hidden_layers), (Turn(0, 1),))
        with torch.inference_mode():
            model.base_model(input_ids=one, position_ids=one, use_cache=False, swaa_context=context)
        return model
    except ModelNotSupported:
        raise
    except Exception as exc:  # of whatever library has the method
        raise not_loaded(method, exc) from exc


def wrap_model(model: Any, fingerprint: str, adapters: Mapping[str, Path] | None = None) -> LoadedModel:
    """A LoadedModel of a transformers model that was built with `attn_implementation="swaa"`."""
    check_supported(model.config)
    if model.config._attn_implementation != ATTENTION_NAME:
        raise ModelNotSupported(f"the model was built with attention {model.config._attn_implementation!r}")
    eos = model.generation_config.eos_token_id if model.generation_config is not None else None
    eos = model.config.eos_token_id if eos is None else eos
    eos_ids = frozenset() if eos is None else frozenset(eos if isinstance(eos, list) else [eos])
    shape = shape_of(model.config, model.dtype)
    return LoadedModel(model, shape, eos_ids, fingerprint, install_adapters(model, adapters or {}))


def _fingerprint(folder: Path, files: Sequence[Path], dtype: torch.dtype, quantized_by: str | None) -> str:
    kept_as = str(dtype) if quantized_by is None else f"{dtype} {quantized_by}"
    digest = hashlib.blake2b(kept_as.encode(), digest_size=16)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("transformers_version", None)
    digest.update(json.dumps(config, sort_keys=True).encode())
    for weights in files:
        size = weights.stat().st_size
        digest.update(f"{weights.name}:{size}".encode())
        with weights.open("rb") as file:
            for piece in range(FINGERPRINT_PIECES):
                file.seek(size * piece // FINGERPRINT_PIECES)
                digest.update(file.read(FINGERPRINT_PIECE_BYTES))
    return digest.hexdigest()
