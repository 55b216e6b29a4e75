"""Training: it learns, under the recipe, and what was interrupted ends as if it had not been."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from services.quality.examples import Example
from services.quality.lora import add_lora, save_adapter
from services.quality.packing import DenseKernel
from services.quality.training import TrainConfig, Trainer
from swaa_runtime.errors import InvalidRequest, ModelNotSupported
from swaa_runtime.model.adapters import weights_fingerprint
from swaa_runtime.model.attention import ATTENTION_NAME
from swaa_runtime.model.loader import wrap_model
from swaa_runtime.recipe import Recipe
from tests.services.quality.builders import example
from tests.swaa_runtime.builders import (
    assert_equals_oracle,
    build_request,
    build_rig,
    build_transformer,
    oracle_logits,
    random_tokens,
    tiny_config,
)

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

RECIPE = Recipe(window=6, sink_tokens=2, full_decode=True, full_tail=3)
CONFIG = TrainConfig(rank=2, alpha=4, learning_rate=0.02, pack_tokens=64, accumulate=2, epochs=2)
EXAMPLES = [example(16 + at, 3, 4, 2, seed=at) for at in range(9)]


def tiny() -> Any:
    return build_transformer(tiny_config("llama"), ATTENTION_NAME)


def trainer(config: TrainConfig = CONFIG, examples: list[Example] | None = None) -> tuple[Trainer, Any, Any]:
    model = tiny()
    peft_model = add_lora(model, config)
    return Trainer(model, RECIPE.resolve(3), examples or EXAMPLES, config, DenseKernel()), model, peft_model


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_interrupted_and_resumed_is_bit_for_bit_the_same_as_not(tmp_path: Path) -> None:
    whole, model, _ = trainer()
    losses = [step.loss for step in whole.run()]
    first, _, _ = trainer()
    seen = []
    for step in first.run():
        seen.append(step.loss)
        if step.step == 3:
            first.save(tmp_path)
            break
    torch.manual_seed(999)
    second, resumed, _ = trainer()
    assert second.resume(tmp_path)
    seen += [step.loss for step in second.run()]
    assert seen == losses
    assert len(losses) == whole.num_steps > 4
    want, got = trained(model), trained(resumed)
    assert all(torch.equal(want[name], got[name]) for name in want)


def test_a_checkpoint_of_another_job_is_refused_and_none_is_none(tmp_path: Path) -> None:
    first, _, _ = trainer()
    assert not first.resume(tmp_path)
    next(first.run())
    first.save(tmp_path)
    for other in (trainer(replace(CONFIG, seed=1)), trainer(examples=EXAMPLES[1:])):
        with pytest.raises(InvalidRequest, match="other settings, data or recipe"):
            other[0].resume(tmp_path)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_falls_and_checkpointed_layers_learn_the_same(checkpointing: bool) -> None:
    run, model, _ = trainer(replace(CONFIG, epochs=6, checkpointing=checkpointing))
    losses = [step.loss for step in run.run()]
    assert losses[-1] < losses[0] - 0.3
    plain, other, _ = trainer(replace(CONFIG, epochs=6))
    for _ in plain.run():
        pass
    mine, theirs = trained(model), trained(other)
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-4) for name in mine)


def test_accumulated_packs_are_one_larger_batch() -> None:
    """The loss is a mean over answer tokens, however they are packed."""
    together, _, _ = trainer(replace(CONFIG, pack_tokens=300, accumulate=1))
    apart, _, _ = trainer(replace(CONFIG, pack_tokens=36, accumulate=9))
    first, second = next(together.run()), next(apart.run())
    assert first.answer_tokens == second.answer_tokens == 5 * 9
    assert first.loss == pytest.approx(second.loss, abs=1e-5)


def test_the_adapter_that_was_written_is_the_one_that_was_trained(tmp_path: Path) -> None:
    """Served by the engine in a batch, it gives the logits of the model with peft's modules in it."""
    run, model, peft_model = trainer()
    base = weights_fingerprint(tiny())
    assert weights_fingerprint(model) == base
    for _ in run.run():
        pass
    with torch.no_grad():
        for parameter in trained(model):
            model.get_parameter(parameter).copy_(model.get_parameter(parameter).bfloat16())
    save_adapter(peft_model, tmp_path / "a", base, RECIPE, "tiny")
    served = wrap_model(tiny(), "served", {"a": tmp_path / "a"})
    rig = build_rig(served)
    request = rig.add(build_request("r", random_tokens(30), replace(RECIPE, adapter=served.adapters.ids["a"])))
    rig.run()
    model.eval()
    assert_equals_oracle(rig, wrap_model(model, "trained"), request, tolerance=2e-5)
    assert (oracle_logits(wrap_model(tiny(), "bare"), request) - rig.runner.recorded(request)[-1]).abs().max() > 0.05


def test_bad_settings_and_targets_are_named() -> None:
    with pytest.raises(InvalidRequest, match="rank"):
        TrainConfig(rank=0)
    with pytest.raises(InvalidRequest, match="warmup"):
        TrainConfig(warmup=1.0)
    with pytest.raises(ModelNotSupported, match="nonsense"):
        add_lora(tiny(), replace(CONFIG, targets=("nonsense",)))
