"""The recipe: how one request attends (DESIGN §2, §3), and what it means for each layer of a model.

Source of the method: Sliding Window Attention Adaptation, arXiv 2512.10411. `full_tail` and `lookback_layers` are ours.
This module knows nothing of models or tensors: layers are numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from swaa_runtime.errors import InvalidRecipe

LayerSelection = str | tuple[int, ...]
"""Either a Python slice as a string (`"1::2"`) or the layer indices themselves; empty selects nothing."""

MAX_TOKENS_FIELD = 2**31 - 1


@dataclass(frozen=True, slots=True)
class LayerRule:
    """What a recipe means in one layer. `window=None` attends to everything; then the other fields are zero."""

    window: int | None = None
    sink_tokens: int = 0
    full_decode: bool = False
    full_tail: int = 0

    @property
    def looks_back(self) -> bool:
        """Whether some later query of this layer may see all of the past although its window is finite."""
        return self.full_decode or self.full_tail > 0


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one request attends.

    Attributes:
        window: tokens a sliding query sees, itself included; None is full attention in every layer.
        sink_tokens: the first tokens of the sequence, always visible.
        full_layers: layers that always attend to everything.
        lookback_layers: sliding layers in which `full_decode` and `full_tail` apply; None means all of them.
        full_decode: generated tokens see everything (in lookback layers).
        full_tail: the last so many prompt tokens of each turn see everything (in lookback layers).
        thinking: ask the model's chat template for chain of thought.
        adapter: a fine-tuned adapter, or None: its name in catalogues, its id (name and content, `name@digest`) where
            the recipe is run or something is kept under it.

    Raises:
        InvalidRecipe: on construction, if a field has the wrong type or is out of its bound.
    """

    window: int | None = None
    sink_tokens: int = 0
    full_layers: LayerSelection = ()
    lookback_layers: LayerSelection | None = None
    full_decode: bool = False
    full_tail: int = 0
    thinking: bool = False
    adapter: str | None = None

    def __post_init__(self) -> None:
        if self.window is not None:
            _check_int("window", self.window, 1)
        _check_int("sink_tokens", self.sink_tokens, 0)
        _check_int("full_tail", self.full_tail, 0)
        for name in ("full_decode", "thinking"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRecipe(name, getattr(self, name), "must be true or false")
        if self.adapter is not None and (not isinstance(self.adapter, str) or not self.adapter):
            raise InvalidRecipe("adapter", self.adapter, "must be a name or absent")
        object.__setattr__(self, "full_layers", _parse_selection("full_layers", self.full_layers))
        if self.lookback_layers is not None:
            object.__setattr__(self, "lookback_layers", _parse_selection("lookback_layers", self.lookback_layers))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Recipe:
        """Build from plain data (JSON). Raises InvalidRecipe for a field this version does not know."""
        known = {field.name for field in fields(cls)}
        for name, value in mapping.items():
            if name not in known:
                raise InvalidRecipe(str(name), value, f"unknown recipe field; known are {', '.join(sorted(known))}")
        return cls(**dict(mapping))

    @classmethod
    def from_swaa_config(cls, mapping: Mapping[str, Any], window_convention: Literal["hf", "vllm"] = "hf") -> Recipe:
        """Load the configuration of the paper's authors (their SWAA config).

        Args:
            mapping: `sliding_window_size`, `keep_first`, `force_fa_decode`, `non_sliding_layers`.
            window_convention: their vLLM patch's window is one key wider than their HF patch's; "vllm" reproduces it.
        """
        names = {
            "sliding_window_size": "window",
            "keep_first": "sink_tokens",
            "force_fa_decode": "full_decode",
            "non_sliding_layers": "full_layers",
        }
        for name, value in mapping.items():
            if name not in names:
                raise InvalidRecipe(str(name), value, f"unknown SWAA field; known are {', '.join(names)}")
        if window_convention not in ("hf", "vllm"):
            raise InvalidRecipe("window_convention", window_convention, "must be 'hf' or 'vllm'")
        renamed = {names[name]: value for name, value in mapping.items()}
        window = renamed.get("window")
        if window is not None and window_convention == "vllm":
            _check_int("sliding_window_size", window, 0)
            renamed["window"] = window + 1
        return cls(**renamed)

    def to_mapping(self) -> dict[str, Any]:
        """Plain data that `from_mapping` reads back to an equal recipe."""
        out: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            out[field.name] = list(value) if isinstance(value, tuple) else value
        return out

    def fingerprint(self) -> str:
        """Hex digest that is equal exactly for equal recipes; names what a saved KV state was computed under."""
        text = json.dumps(self.to_mapping(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def pinned(self, adapter_ids: Mapping[str, str]) -> Recipe:
        """The recipe with its adapter's id in place of its name; one without, or with an id already, as it is.

        Args:
            adapter_ids: ids of the adapters that are loaded, by name.

        Raises:
            InvalidRecipe: if the adapter is not among them.
        """
        if self.adapter is None or self.adapter in adapter_ids.values():
            return self
        if self.adapter not in adapter_ids:
            raise InvalidRecipe("adapter", self.adapter, f"is not loaded; loaded are {known_adapters(adapter_ids)}")
        return replace(self, adapter=adapter_ids[self.adapter])

    def resolve(self, num_layers: int) -> tuple[LayerRule, ...]:
        """The rule of each of a model's layers.

        Raises:
            InvalidRecipe: if a layer index or slice bound does not exist in a model of `num_layers` layers.
        """
        full = select_layers("full_layers", self.full_layers, num_layers)
        if self.lookback_layers is None:
            lookback = frozenset(range(num_layers))
        else:
            lookback = select_layers("lookback_layers", self.lookback_layers, num_layers)
        if self.window is None:
            return (LayerRule(),) * num_layers
        # Few objects for many layers: whoever counts or groups them finds equal ones at once.
        sees_all, looks_back = LayerRule(), LayerRule(self.window, self.sink_tokens, self.full_decode, self.full_tail)
        slides = LayerRule(self.window, self.sink_tokens)
        return tuple(
            sees_all if layer in full else looks_back if layer in lookback else slides for layer in range(num_layers)
        )


def select_layers(field: str, selection: LayerSelection, num_layers: int) -> frozenset[int]:
    """The layers that a selection names in a model of `num_layers` layers; out of range is an error, never ignored."""
    if isinstance(selection, tuple):
        for layer in selection:
            if layer >= num_layers:
                raise InvalidRecipe(field, layer, f"layer must be in 0..{num_layers - 1}")
        return frozenset(selection)
    if not selection:
        return frozenset()
    bounds = _parse_slice(field, selection)
    for bound in (bounds.start, bounds.stop):
        if bound is not None and not -num_layers <= bound <= num_layers:
            raise InvalidRecipe(field, selection, f"slice bounds must be in {-num_layers}..{num_layers}")
    layers = frozenset(range(*bounds.indices(num_layers)))
    if not layers:
        raise InvalidRecipe(field, selection, f"selects none of {num_layers} layers; leave it empty to mean that")
    return layers


def known_adapters(adapter_ids: Mapping[str, str]) -> str:
    """The adapters there are, for messages."""
    return ", ".join(sorted(adapter_ids.values())) or "none"


def _check_int(field: str, value: object, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= MAX_TOKENS_FIELD:
        raise InvalidRecipe(field, value, f"must be an integer in {low}..{MAX_TOKENS_FIELD}")


def _parse_selection(field: str, value: object) -> LayerSelection:
    if isinstance(value, str):
        if value:
            _parse_slice(field, value)
        return value
    if isinstance(value, list | tuple):
        for layer in value:
            if not isinstance(layer, int) or isinstance(layer, bool) or layer < 0:
                raise InvalidRecipe(field, layer, "layer must be an integer of at least 0")
        return tuple(sorted(set(value)))
    raise InvalidRecipe(field, value, 'must be a slice such as "1::2", a list of layer indices, or empty')


def _parse_slice(field: str, text: str) -> slice:
    parts = text.split(":")
    try:
        if not 2 <= len(parts) <= 3:
            raise ValueError
        numbers = [int(part) if part.strip() else None for part in parts]
        if len(numbers) == 3 and numbers[2] == 0:
            raise ValueError
    except ValueError:
        raise InvalidRecipe(field, text, 'must be a Python slice such as "1::2" with a step other than 0') from None
    return slice(*numbers)
