"""LoRA adapters (peft's files) beside one model: rows of one forward may use different ones, or none.

    y[rows of adapter a] = W x + scale_a B_a A_a x          all other rows: y = W x, bit for bit

transformers calls a projection with its input and nothing else, so the step's context cannot come by arguments, as it
does to the attention function: the wrapped modules share one `ActiveRows` with whoever runs the forward.

An adapter's id is its name and its content, `name@digest`. A recipe that is run names the id, so that whatever is kept
under a recipe (sessions, prefixes, quality) belongs to this content.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from swaa_runtime.errors import InvalidRecipe, ModelNotSupported
from swaa_runtime.model.files import weight_files
from swaa_runtime.model.quantized import described, is_plain
from swaa_runtime.recipe import Recipe, known_adapters

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
BASE_FINGERPRINT = "swaa_base_fingerprint"
"""Metadata key in the weights' file: `weights_fingerprint` of the model that the adapter was trained on."""

NAME_PREFIX = "base_model.model."
DIGEST_BYTES = 8
FINGERPRINT_VALUES = 512

UNSUPPORTED: dict[str, tuple[object, object]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "fan_in_fan_out": (False, None),
    "layer_replication": (None, []),
    "lora_bias": (False, None),
    "trainable_token_indices": (None, []),
}
"""Settings of peft that change what an adapter computes, and the values that do not."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """One module's update: scale * up @ down. down: [rank, in_features]; up: [out_features, rank]."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float

    def delta(self, x: torch.Tensor) -> torch.Tensor:
        """What is added to the output for inputs [..., in_features]."""
        return (x @ self.down.T) @ self.up.T * self.scale

    def weight(self) -> torch.Tensor:
        """The same as an addend of the weight, float32 [out_features, in_features]."""
        return self.up.float() @ self.down.float() * self.scale


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter as read and checked for one model: updates by module name."""

    adapter_id: str
    updates: Mapping[str, LowRank]


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """Rows of a forward that use one adapter: a range, or int64 indices."""

    adapter_id: str
    rows: slice | torch.Tensor


class ActiveRows:
    """Which rows of the forward that runs now use which adapter. One per model; a forward may run inside another."""

    def __init__(self) -> None:
        self.groups: Sequence[AdapterRows] = ()

    @contextlib.contextmanager
    def during(self, groups: Sequence[AdapterRows]) -> Iterator[None]:
        """Apply to the forwards inside; afterwards those from before do again."""
        before, self.groups = self.groups, groups
        try:
            yield
        finally:
            self.groups = before


class AdaptedLinear(torch.nn.Module):
    """A linear module with the low-rank updates that adapters have for it."""

    def __init__(self, base: torch.nn.Linear, active: ActiveRows) -> None:
        super().__init__()
        self.base = base
        self.updates: dict[str, LowRank] = {}
        self._active = active

    @property
    def is_active(self) -> bool:
        """Whether any rows of the forward that runs now use an adapter, of this module or another."""
        return bool(self._active.groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., T, in_features]."""
        out: torch.Tensor = self.base(x)
        self.add_updates(x, out)
        return out

    def add_updates(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """Add what active adapters change for inputs [..., T, in_features] to the module's output, in place."""
        for group in self._active.groups:
            update = self.updates.get(group.adapter_id)
            if update is not None:
                out[..., group.rows, :] += update.delta(x[..., group.rows, :])


class Adapters:
    """The adapters that a loaded model can run.

    Attributes:
        ids: id by name.
        active: what a forward says its rows use.
    """

    def __init__(self, files: Mapping[str, AdapterFile] | None = None) -> None:
        self.ids: dict[str, str] = {name: file.adapter_id for name, file in (files or {}).items()}
        self.active = ActiveRows()

    def pin(self, recipe: Recipe) -> Recipe:
        """The recipe with its adapter's id in place of its name. Raises InvalidRecipe if it is not loaded."""
        return recipe.pinned(self.ids)

    def check(self, recipe: Recipe) -> None:
        """Raise InvalidRecipe unless the recipe names no adapter, or the id of one that is loaded."""
        if recipe.adapter is not None and recipe.adapter not in self.ids.values():
            raise InvalidRecipe("adapter", recipe.adapter, f"is not loaded; loaded are {known_adapters(self.ids)}")


def install_adapters(model: Any, folders: Mapping[str, Path]) -> Adapters:
    """Read adapters by name and put them beside the model's modules. The model's own weights are not touched.

    Raises:
        ModelNotSupported: for an adapter that cannot be read, or is not of this model.
    """
    files = {name: read_adapter(name, folder, model) for name, folder in folders.items()}
    adapters = Adapters(files)
    for file in files.values():
        for name, update in file.updates.items():
            module = model.get_submodule(name)
            if not isinstance(module, AdaptedLinear):
                module = AdaptedLinear(module, adapters.active)
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, module)
            module.updates[file.adapter_id] = update
    return adapters


def merge_adapter(model: Any, folder: Path) -> None:
    """Add an adapter to the model's own weights: the slow twin of `AdaptedLinear`, and what a merged model is.

    Raises:
        ModelNotSupported: as `install_adapters` does.
    """
    for name, update in read_adapter("merged", folder, model).updates.items():
        module = model.get_submodule(name)
        if not is_plain(module):
            raise ModelNotSupported(f"{name} is quantised ({described(module)}): an adapter cannot be merged into it")
        weight = module.weight
        with torch.no_grad():
            weight.copy_(weight.float() + update.weight().to(weight.device))


def read_adapter(name: str, folder: Path, model: Any) -> AdapterFile:
    """Read and check an adapter's folder for a model. Tensors take the model's dtype and device.

    Raises:
        ModelNotSupported: naming what is missing, unknown or does not fit.
    """
    if not (folder / WEIGHTS_FILE).is_file():
        weight_files(folder)  # says that they are pickled, if that is it: adapters have no flag for those
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        content = (folder / WEIGHTS_FILE).read_bytes()
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, ValueError, SafetensorError) as exc:
        raise ModelNotSupported(f"adapter {name!r} in {folder.name} cannot be read: {exc}") from exc
    base, own = metadata.get(BASE_FINGERPRINT), weights_fingerprint(model)
    if base is not None and base != own:
        raise ModelNotSupported(f"adapter {name!r} was trained on a model of fingerprint {base}, this one is {own}")
    scale = _scale(name, config)
    updates = _updates(name, config, tensors, scale, model)
    digest = hashlib.blake2b(content + str(scale).encode(), digest_size=DIGEST_BYTES).hexdigest()
    return AdapterFile(f"{name}@{digest}", updates)


def _scale(name: str, config: Mapping[str, Any]) -> float:
    if config.get("peft_type") != "LORA":
        raise ModelNotSupported(f"adapter {name!r} is of type {config.get('peft_type')!r}; supported is 'LORA'")
    for setting, harmless in UNSUPPORTED.items():
        if setting in config and config[setting] not in harmless:
            raise ModelNotSupported(f"adapter {name!r} has {setting} {config[setting]!r}, which is not supported")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise ModelNotSupported(f"adapter {name!r} has r {rank!r} and lora_alpha {alpha!r}: must be numbers, r above 0")
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _updates(
    name: str, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], scale: float, model: Any
) -> dict[str, LowRank]:
    rank = config["r"]
    modules = dict(model.named_modules())
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        path, _, kind = key.removeprefix(NAME_PREFIX).rpartition(".lora_")
        if not key.startswith(NAME_PREFIX) or kind not in ("A.weight", "B.weight"):
            raise ModelNotSupported(f"adapter {name!r} has a tensor {key!r}, which is no LoRA weight")
        pairs.setdefault(path, {})[kind] = tensor
    if not pairs:
        raise ModelNotSupported(f"adapter {name!r} has no weights")
    updates = {}
    for path, pair in pairs.items():
        linear = modules.get(path)
        if isinstance(linear, AdaptedLinear):
            linear = linear.base
        if not isinstance(linear, torch.nn.Linear):
            raise ModelNotSupported(
                f"adapter {name!r} is for module {path!r}, which this model has not as a linear one"
            )
        expected = {"A.weight": (rank, linear.in_features), "B.weight": (linear.out_features, rank)}
        for kind, shape in expected.items():
            found = tuple(pair[kind].shape) if kind in pair else None
            if found != shape:
                raise ModelNotSupported(f"adapter {name!r}: lora_{kind} of {path!r} is {found}, must be {shape}")
        down, up = (pair[kind].to(model.device, model.dtype) for kind in ("A.weight", "B.weight"))
        updates[path] = LowRank(down, up, scale)
    return updates


def weights_fingerprint(model: Any) -> str:
    """Names the model's weights in whatever dtype they were loaded: a sample of each parameter, as bfloat16.

    What is quantised is left out, so it is another than the unquantised model's.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters(), key=lambda item: _own_name(item[0])):
        if ".lora_" in name or type(parameter) is not torch.nn.Parameter:
            continue
        digest.update(f"{_own_name(name)}{tuple(parameter.shape)}".encode())
        sample = parameter.detach().reshape(-1)[:FINGERPRINT_VALUES].to("cpu", torch.bfloat16)
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _own_name(name: str) -> str:
    """A parameter's name in the model as it came, whether or not adapters (ours, or peft's) were put beside it."""
    return name.removeprefix(NAME_PREFIX).replace(".base_layer.", ".").replace(".base.", ".")
