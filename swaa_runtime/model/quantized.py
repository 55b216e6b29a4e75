"""Models whose weights come quantised: transformers reads them, if it can here, and its layers run them.

Their linear modules are of classes, or have weights of classes, that only their own forward knows: what computes with
weights itself (our decoder, a rank's part, merged adapters) asks `is_plain` first.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from swaa_runtime.errors import ModelNotSupported

PACKAGES = {
    "auto-round": "auto-round",
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "gptq": "optimum gptqmodel",
    "hqq": "hqq",
    "quanto": "optimum-quanto",
    "torchao": "torchao",
}
"""What has the layers of a method, which none of ours needs."""


def quantization_method(config: Any) -> str | None:
    """How the weights of a transformers configuration are quantised; None: they are not.

    The configuration is changed to one whose layers work by themselves.

    Raises:
        ModelNotSupported: if that is nothing transformers knows: it would read them as if they were not.
    """
    told = getattr(config, "quantization_config", None)
    if told is None:
        return None
    settings = told if isinstance(told, dict) else {}
    method = settings.get("quant_method")
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        method = "bitsandbytes"  # whose older files do not name it
    if method != "bitsandbytes" and method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise ModelNotSupported(f"the model's weights are quantised by {method!r}, which transformers does not know")
    if method == "compressed-tensors":  # else undone when the model's own forward is called first, which ours is not
        settings["dequantize"] = True
    return str(method)


def not_loaded(method: str, exc: Exception) -> ModelNotSupported:
    """What went wrong with weights that are quantised, in one line."""
    reason = next(iter(str(exc).splitlines()), "") or type(exc).__name__
    if isinstance(exc, ImportError) and method in PACKAGES:
        reason += f" (pip install {PACKAGES[method]})"
    return ModelNotSupported(f"the model's weights are quantised by {method!r}, which cannot be loaded here: {reason}")


def is_plain(module: Any) -> bool:
    """Whether a module is torch's own linear one, and its weight a tensor that says what it multiplies by."""
    return type(module) is torch.nn.Linear and type(module._parameters.get("weight")) is torch.nn.Parameter


def described(module: Any) -> str:
    """A module in words, for errors: its class, and its weight's."""
    weight = getattr(module, "weight", None)
    return type(module).__name__ if weight is None else f"{type(module).__name__} of {type(weight).__name__}"
