"""Recipe-aware LoRA training: one optimiser step after another, stoppable anywhere, resumed exactly.

Prompt tokens attend under the recipe, answer tokens under its decode rule; the loss is on answers only. Order and packs
are a function of settings and data, so that a position is one number.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from services.quality.examples import Example
from services.quality.forward import answer_nll
from services.quality.packing import PackedContext, PackedKernel, PackedMasks, pack, plan_packs
from swaa_runtime.errors import InvalidRequest
from swaa_runtime.recipe import LayerRule

STATE_FILE, POSITION_FILE = "state.safetensors", "position.json"


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How to train. The defaults are the paper's; `alpha` / `rank` scales the update.

    Attributes:
        targets: names of the linear modules that get an update.
        pack_tokens: rows of one forward; examples are packed into them.
        accumulate: packs per optimiser step.
        warmup: share of the steps over which the learning rate rises; after that it falls to 0 along a cosine.
        checkpointing: keep only the layers' inputs for the backward pass.
    """

    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    epochs: int = 1
    pack_tokens: int = 16384
    accumulate: int = 1
    warmup: float = 0.03
    max_grad_norm: float = 1.0
    checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "alpha", "epochs", "pack_tokens", "accumulate"):
            if getattr(self, name) < 1:
                raise InvalidRequest(name, getattr(self, name), "must be at least 1")
        if not self.learning_rate > 0.0 or not 0.0 <= self.warmup < 1.0:
            raise InvalidRequest("learning_rate, warmup", (self.learning_rate, self.warmup), "must be > 0, in 0..1")


@dataclass(frozen=True, slots=True)
class Step:
    """What one optimiser step was: mean loss (nats per answer token), tokens trained on, seconds."""

    step: int
    num_steps: int
    epoch: int
    loss: float
    learning_rate: float
    tokens: int
    answer_tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Prompt and answer tokens per second."""
        return self.tokens / self.seconds


class Trainer:
    """Trains the parameters of a model that require gradients. Owns optimiser and position; one caller at a time."""

    def __init__(
        self,
        model: Any,
        rules: Sequence[LayerRule],
        examples: Sequence[Example],
        config: TrainConfig,
        kernel: PackedKernel,
    ) -> None:
        """`model`: built with attention "swaa", LoRA modules in place (`lora.add_lora`)."""
        self.config = config
        self.step = 0
        self._model, self._rules, self._examples, self._kernel = model, rules, examples, kernel
        self._device: torch.device = next(model.parameters()).device
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self._plan = [step for epoch in range(config.epochs) for step in self._plan_epoch(epoch)]
        torch.manual_seed(config.seed)
        model.train()
        if config.checkpointing:
            # transformers renamed it: 5.24 warns of the old name, 5.17 has not the new one.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return len(self._plan)

    def run(self) -> Iterator[Step]:
        """Train from the present position to the end, one step at a time."""
        while self.step < self.num_steps:
            yield self._train_step()

    def _plan_epoch(self, epoch: int) -> list[tuple[int, list[list[int]]]]:
        """(epoch, packs) of every step: which examples go together."""
        order = list(range(len(self._examples)))
        random.Random(f"{self.config.seed}/{epoch}").shuffle(order)
        lengths = [len(example.token_ids) for example in self._examples]
        packs = plan_packs(lengths, order, self.config.pack_tokens)
        size = self.config.accumulate
        return [(epoch, packs[at : at + size]) for at in range(0, len(packs), size)]

    def _train_step(self) -> Step:
        start_s = time.monotonic()
        epoch, packs = self._plan[self.step]
        chosen = [[self._examples[index] for index in members] for members in packs]
        answer_tokens = sum(example.num_answer_tokens for members in chosen for example in members)
        loss = 0.0
        for members in chosen:
            loss += self._backward(members, answer_tokens)
        rate = self._learning_rate()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        torch.nn.utils.clip_grad_norm_(self._parameters.values(), self.config.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        tokens = sum(len(example.token_ids) for members in chosen for example in members)
        seconds = time.monotonic() - start_s
        return Step(self.step, self.num_steps, epoch, loss, rate, tokens, answer_tokens, seconds)

    def _backward(self, examples: Sequence[Example], answer_tokens: int) -> float:
        """Gradients of one pack's share of the step's mean loss; returns that share."""
        batch = pack(examples, self.config.pack_tokens, self._device)
        context = PackedContext(PackedMasks(batch, self._kernel), self._rules)
        loss = answer_nll(self._model, batch, context).sum() / answer_tokens
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _learning_rate(self) -> float:
        warmup_steps = math.ceil(self.config.warmup * self.num_steps)
        if self.step < warmup_steps:
            return self.config.learning_rate * (self.step + 1) / warmup_steps
        progress = (self.step - warmup_steps) / max(1, self.num_steps - warmup_steps)
        return self.config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))

    def save(self, folder: Path) -> None:
        """Write everything that the rest of the training depends on; a killed save leaves the one before it."""
        tensors = {f"parameter.{name}": p.detach() for name, p in self._parameters.items()}
        for name, parameter in self._parameters.items():
            for key, value in self._optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
        tensors["rng.cpu"] = torch.get_rng_state()
        if self._device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self._device)
        folder.mkdir(parents=True, exist_ok=True)
        state = f"{self.step}-{STATE_FILE}"
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, folder / state)
        partial = folder / f"{POSITION_FILE}.partial"
        partial.write_text(
            json.dumps({"step": self.step, "state": state, "identity": self._identity()}), encoding="utf-8"
        )
        partial.replace(folder / POSITION_FILE)
        for old in folder.glob(f"*-{STATE_FILE}"):
            if old.name != state:
                old.unlink()

    def resume(self, folder: Path) -> bool:
        """Go on where `save` was; False if there is nothing saved.

        Raises:
            InvalidRequest: if it was saved by a training of other settings or data.
        """
        if not (folder / POSITION_FILE).is_file():
            return False
        position = json.loads((folder / POSITION_FILE).read_text(encoding="utf-8"))
        if position["identity"] != self._identity():
            raise InvalidRequest("resume", folder.name, "was saved by a training of other settings, data or recipe")
        tensors = load_file(folder / position["state"])
        torch.set_rng_state(tensors["rng.cpu"])
        if "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"], self._device)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(tensors[f"parameter.{name}"])
                state = {key: tensors.get(f"optimizer.{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
                self._optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(self._device)
                    for key, value in state.items()
                    if value is not None
                }
        self.step = int(position["step"])
        return True

    def _identity(self) -> dict[str, Any]:
        digest = hashlib.blake2b(digest_size=16)
        for part in (self._examples, self._rules, sorted(self._parameters)):
            for item in part:
                digest.update(repr(item).encode())
        return {"config": json.loads(json.dumps(asdict(self.config))), "data": digest.hexdigest()}
