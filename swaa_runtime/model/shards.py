"""One rank's part of a model: some heads of attention, some columns of the MLP, all of the rest.

    q, k, v, gate, up    rows of the weight: the outputs of this rank's heads and columns
    o, down              columns of the weight: what these inputs add to the output, which is summed over the ranks

Embedding, norms and LM head are whole on every rank, and so are the hidden states between the layers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from swaa_runtime.errors import ModelNotSupported
from swaa_runtime.group import Group
from swaa_runtime.model.adapters import AdaptedLinear, LowRank
from swaa_runtime.model.loader import LoadedModel
from swaa_runtime.model.quantized import described, is_plain

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


def check_shardable(config: Any, size: int) -> None:
    """Raise ModelNotSupported unless so many ranks can compute the model of a transformers configuration together."""
    if config.model_type not in MODEL_TYPES:
        raise ModelNotSupported(f"model_type is {config.model_type!r}: tensor parallelism has {', '.join(MODEL_TYPES)}")
    for name in ("num_key_value_heads", "num_attention_heads", "intermediate_size"):
        count = getattr(config, name)
        if count % size:
            raise ModelNotSupported(f"{name} is {count}: cannot be divided among {size} ranks")


def shard_model(loaded: LoadedModel, group: Group) -> LoadedModel:
    """Keep this rank's part of a model that is loaded wholly, on the CPU or the rank's device, and move it there.

    The model's modules are changed in place. Its own forward works as before, with all ranks taking part: sums are
    hooks on o and down; a decoder that uses their weights alone sums by itself.

    Raises:
        ModelNotSupported: as `check_shardable` does, or if weights are quantised.
    """
    check_shardable(loaded.model.config, group.size)

    def hook(module: torch.nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
        return group.sum(out)

    for layer in loaded.model.base_model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for module in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            _keep_outputs(module, group)
        for module in (attention.o_proj, mlp.down_proj):
            _keep_inputs(module, group)
            module.register_forward_hook(hook)
    loaded.model.to(group.device)
    return replace(loaded, group=group)


def _keep_outputs(module: Any, group: Group) -> None:
    linear = _linear(module)
    linear.weight.data = _part(linear.weight.data, 0, group)
    if linear.bias is not None:
        linear.bias.data = _part(linear.bias.data, 0, group)
    linear.out_features = linear.weight.shape[0]
    for name, update in _updates(module).items():
        down, up = update.down.to(group.device), _part(update.up, 0, group)
        module.updates[name] = LowRank(down, up, update.scale)


def _keep_inputs(module: Any, group: Group) -> None:
    linear = _linear(module)
    linear.weight.data = _part(linear.weight.data, 1, group)
    if group.rank > 0:
        linear.bias = None  # it is added once
    linear.in_features = linear.weight.shape[1]
    for name, update in _updates(module).items():
        down, up = _part(update.down, 1, group), update.up.to(group.device)
        module.updates[name] = LowRank(down, up, update.scale)


def _part(tensor: torch.Tensor, dim: int, group: Group) -> torch.Tensor:
    """This rank's part along a dimension, on its device, with memory of its own: the rest can go."""
    part = tensor.chunk(group.size, dim)[group.rank]
    return part.clone(memory_format=torch.contiguous_format).to(group.device)


def _linear(module: Any) -> Any:
    linear = module.base if isinstance(module, AdaptedLinear) else module
    if not is_plain(linear):
        raise ModelNotSupported(f"a quantised model is computed by one GPU, not shared out: it has {described(linear)}")
    return linear


def _updates(module: Any) -> dict[str, LowRank]:
    return dict(module.updates) if isinstance(module, AdaptedLinear) else {}
