"""Models whose weights come quantised: in ways that transformers has by itself, and in one that is not to be had."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from swaa_runtime.errors import ModelNotSupported
from swaa_runtime.model.adapters import install_adapters, merge_adapter, weights_fingerprint
from swaa_runtime.model.attention import ATTENTION_NAME
from swaa_runtime.model.fused import check_fusable
from swaa_runtime.model.loader import load_model, wrap_model
from swaa_runtime.model.shards import shard_model
from swaa_runtime.recipe import Recipe
from tests.swaa_runtime.builders import (
    assert_equals_oracle,
    build_request,
    build_rig,
    build_transformer,
    tiny_config,
    write_adapter,
)

CPU = torch.device("cpu")
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model as a Hugging Face folder."""
    build_transformer(tiny_config("llama"), "eager").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def quantize(folder: Path, settings: object, rewrite: Callable[[str, torch.Tensor], Tensors] | None = None) -> None:
    """Say so in the configuration, and put other tensors in the place of each projection's weight."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    if rewrite is not None:
        tensors: Tensors = {}
        for name, weight in load_file(folder / "model.safetensors").items():
            tensors |= rewrite(name, weight) if name.endswith("_proj.weight") else {name: weight}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


class Int8Linear(torch.nn.Module):
    """A linear module as libraries that quantise have them: nothing of torch's, and its weight not the matrix."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        whole = torch.empty_like(linear.weight, dtype=torch.int8)
        self.weight = torch.nn.Parameter(whole, requires_grad=False)
        self.weight_scale = torch.nn.Parameter(torch.empty_like(linear.weight[:, :1]), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight * self.weight_scale)


@register_quantization_config("test-int8")
class Int8Config(QuantizationConfigMixin):
    def __init__(self, **settings: Any) -> None:
        self.quant_method: Any = "test-int8"


@register_quantizer("test-int8")
class Int8Quantizer(HfQuantizer):
    requires_calibration = True
    is_trainable = False

    def is_serializable(self) -> bool:
        return True

    def _process_model_before_weight_loading(self, model: Any, **options: Any) -> None:
        for name, module in list(model.named_modules()):
            if name.endswith("_proj"):
                model.set_submodule(name, Int8Linear(module))


def int8(name: str, weight: torch.Tensor) -> Tensors:
    """With a scale for each output."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return {name: torch.round(weight / scale).to(torch.int8), f"{name}_scale": scale}


def fp8(name: str, weight: torch.Tensor) -> Tensors:
    """With one scale for a block of 128 x 128, which is larger than all."""
    scale = weight.abs().max() / 448
    return {name: (weight / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale.reshape(1, 1)}


def test_layers_that_stay_quantised_run_as_transformers_has_them(folder: Path) -> None:
    plain = load_model(folder, torch.float32, CPU)
    quantize(folder, {"quant_method": "test-int8"}, int8)
    loaded = load_model(folder, torch.float32, CPU)
    assert loaded.quantized_by == "test-int8"
    assert plain.quantized_by is None
    assert loaded.fingerprint != plain.fingerprint
    assert loaded.shape == plain.shape

    rig = build_rig(loaded)
    request = rig.add(build_request("r", 30, Recipe(window=12, sink_tokens=2, full_tail=3)))
    rig.run()
    assert_equals_oracle(rig, loaded, request)


def test_who_computes_with_weights_itself_refuses_them(folder: Path, tmp_path: Path) -> None:
    quantize(folder, {"quant_method": "test-int8"}, int8)
    loaded = load_model(folder, torch.float32, CPU)
    with pytest.raises(ModelNotSupported, match=r"q_proj is no plain linear module .*: Int8Linear of Parameter"):
        check_fusable(loaded.model)
    group: Any = SimpleNamespace(size=2, rank=0)
    with pytest.raises(ModelNotSupported, match="a quantised model is computed by one GPU"):
        shard_model(loaded, group)
    adapter = write_adapter(tmp_path / "adapter", seed=1)
    with pytest.raises(ModelNotSupported, match="which this model has not as a linear one"):
        install_adapters(loaded.model, {"one": adapter})


class Other(torch.nn.Parameter):
    """A weight that only its own class knows how to multiply by, as libraries that quantise have them."""


def with_other_weights() -> Any:
    model = build_transformer(tiny_config("llama"), ATTENTION_NAME)
    for layer in model.base_model.layers:
        linear = layer.self_attn.q_proj
        linear.weight = Other(linear.weight.data, requires_grad=False)
    return model


def test_adapters_work_beside_linear_modules_with_weights_of_another_class(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", seed=1)
    requests = []
    for model in (build_transformer(tiny_config("llama"), ATTENTION_NAME), with_other_weights()):
        loaded = wrap_model(model, "x", {"one": folder})
        rig = build_rig(loaded)
        requests.append(rig.add(build_request("r", 30, Recipe(adapter=loaded.adapters.ids["one"]))))
        rig.run()
    assert requests[0].token_ids == requests[1].token_ids
    told = r"q_proj is quantised \(Linear of Other\): an adapter cannot be merged"
    with pytest.raises(ModelNotSupported, match=told):
        merge_adapter(with_other_weights(), folder)
    with pytest.raises(ModelNotSupported, match=r"q_proj is no plain linear module .*: Linear of Other"):
        check_fusable(with_other_weights())


def test_an_adapter_that_names_its_model_is_not_taken_by_the_quantised_one(tmp_path: Path) -> None:
    base = weights_fingerprint(build_transformer(tiny_config("llama"), ATTENTION_NAME))
    folder = write_adapter(tmp_path / "adapter", seed=1, base=base)
    with pytest.raises(ModelNotSupported, match=f"was trained on a model of fingerprint {base}"):
        install_adapters(with_other_weights(), {"one": folder})


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in fp8")
def test_weights_that_transformers_undoes_are_the_models_own(folder: Path) -> None:
    before = load_model(folder, torch.float32, CPU)
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    quantize(folder, settings, fp8)
    loaded = load_model(folder, torch.float32, CPU)
    assert loaded.quantized_by is None
    check_fusable(loaded.model)
    assert loaded.fingerprint != before.fingerprint
    for name, weight in before.model.named_parameters():
        error = (loaded.model.get_parameter(name) - weight).norm() / weight.norm()
        assert error < 0.05


@pytest.mark.parametrize(
    ("settings", "module", "told"),
    [
        (
            {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}},
            "torchao",
            r"'torchao', which cannot be loaded here: .*torchao.* \(pip install torchao\)",
        ),
        (
            {"quant_method": "gptq", "bits": 4},
            "optimum",
            r"'gptq', which .* \(pip install optimum gptqmodel\)",
        ),
        ({"quant_method": "awq", "bits": 4}, "gptqmodel", r"'awq', which cannot be .* \(pip install gptqmodel\)"),
        ({"load_in_8bit": True}, "bitsandbytes", r"'bitsandbytes', which .* \(pip install bitsandbytes\)"),
        ({"quant_method": "compressed-tensors"}, "compressed_tensors", r"\(pip install compressed-tensors\)"),
        ({"quant_method": "quanto", "weights": "int8"}, "optimum", r"\(pip install optimum-quanto\)"),
        ({"quant_method": "rot13"}, None, "quantised by 'rot13', which transformers does not know"),
        ({"bits": 4}, None, "quantised by None, which transformers does not know"),
        ({"quant_method": "test-int8"}, None, r"model lacks weights: model\.layers\.0\.mlp\.down_proj\.weight_scale"),
    ],
)
def test_what_cannot_be_had_is_one_error(
    folder: Path, settings: Any, module: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if module is not None:
        monkeypatch.setitem(sys.modules, module, None)  # not installed
    quantize(folder, settings)
    with pytest.raises(ModelNotSupported, match=told):
        load_model(folder, torch.float32, CPU)


def test_layers_that_find_out_late_what_they_lack_are_tried(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Int8Linear, x: torch.Tensor) -> torch.Tensor:
        raise ImportError("no kernels\nfound")

    quantize(folder, {"quant_method": "test-int8"}, int8)
    monkeypatch.setattr(Int8Linear, "forward", fail)
    with pytest.raises(ModelNotSupported, match=r"'test-int8', which cannot be loaded here: no kernels$"):
        load_model(folder, torch.float32, CPU)


def test_a_folder_that_lacks_weights_is_refused(folder: Path) -> None:
    """transformers would make some up, as of a quantised model whose tensors have other names."""
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelNotSupported, match=r"model lacks weights: model\.layers\.1\.self_attn\.q_proj\.weight"):
        load_model(folder, torch.float32, CPU)
