"""The job behind `swaa calibrate --quality`: choose layers, then say on other prompts what the choice is worth."""

from __future__ import annotations

import math
import statistics as stats
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from services.quality.distill import Progress, answer_all
from services.quality.examples import Example
from services.quality.finetune import (
    CALIBRATION_SEED,
    CARD_SEED,
    FULL,
    PracticePlan,
    make_practices,
    reference_examples,
)
from services.quality.layers import SWAPPED, Choice, Kind, Scorer, greedy, lazy_ratio, leave_one_out, swap, with_layers
from services.quality.packing import PackedKernel, PackedMasks, pack, plan_packs
from services.quality.statistics import Interval, wilson
from swaa_runtime.engine import Engine
from swaa_runtime.recipe import Recipe

Method = Literal["leave-one-out", "greedy", "swap", "lazy-ratio"]


@dataclass(frozen=True, slots=True)
class CalibrationPlan:
    """What to choose, and on what.

    Attributes:
        base: the recipe without chosen layers. kind: what the layers will do. counts: how many layers.
        practice: calibration prompts; the card's have the same tasks and lengths.
        candidates: greedy tries only the best so many by leave-one-out; 0: all.
        pack_tokens: rows of one forward.
    """

    base: Recipe
    kind: Kind
    counts: tuple[int, ...]
    methods: tuple[Method, ...]
    practice: PracticePlan
    card_count: int
    candidates: int = 0
    pack_tokens: int = 16384


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A chosen recipe. `nll` and `full_nll`: nats per answer token on the card's prompts, with 95 % intervals."""

    name: str
    method: str
    recipe: Recipe
    nll: Interval
    full_nll: Interval


def scorer(
    model: Any,
    examples: Sequence[Example],
    num_layers: int,
    pack_tokens: int,
    kernel: PackedKernel,
    device: torch.device,
) -> tuple[Scorer, list[PackedMasks]]:
    """Scores recipes on these examples; and the packs they are in."""
    lengths = [len(example.token_ids) for example in examples]
    packs = [
        PackedMasks(pack([examples[index] for index in members], pack_tokens, device), kernel)
        for members in plan_packs(lengths, range(len(examples)), pack_tokens)
    ]
    return Scorer(model, packs, num_layers), packs


def choose(
    plan: CalibrationPlan, score: Scorer, packs: Sequence[PackedMasks], model: Any, progress: Progress
) -> list[Choice]:
    """One choice per method; of greedy and swap as many layers as the largest count."""
    layers, most = score.num_layers, max(plan.counts)
    choices: list[Choice] = []
    by_loss = leave_one_out(score, plan.base, plan.kind, layers, progress)
    for method in plan.methods:
        if method == "leave-one-out":
            choices.append(by_loss)
        elif method == "lazy-ratio":
            choices.append(lazy_ratio(model, packs, plan.base, layers, progress))
        else:
            candidates = by_loss.order[: plan.candidates] if plan.candidates else tuple(range(layers))
            choice = greedy(score, plan.base, plan.kind, candidates, most, progress)
            if method == "swap":
                choice = swap(score, plan.base, plan.kind, choice.order, layers, rounds=3)
            choices.append(choice)
    return choices


def judge(plan: CalibrationPlan, choices: Sequence[Choice], held_out: Scorer) -> list[Calibrated]:
    """What the chosen layers are worth on prompts that nothing was chosen by, best first within a count."""
    full = _mean(held_out.each(FULL))
    judged = []
    for count in plan.counts:
        of_count = []
        for choice in choices:
            if choice.method == SWAPPED and count != len(choice.order):
                continue
            recipe = with_layers(plan.base, plan.kind, choice.top(count))
            name = f"{plan.kind}-{count}-{choice.method.replace(' ', '-')}"
            of_count.append(Calibrated(name, choice.method, recipe, _mean(held_out.each(recipe)), full))
        judged += sorted(of_count, key=lambda one: one.nll.mean)
    return judged


def calibration_examples(
    plan: CalibrationPlan, tokenizer: Any, num_processes: int = 1
) -> tuple[list[Example], list[Example]]:
    """Examples to choose by, and others for the card."""
    chosen_by = replace(plan.practice, seed=CALIBRATION_SEED + plan.practice.seed)
    card = replace(plan.practice, seed=CARD_SEED + plan.practice.seed, count=plan.card_count)
    return reference_examples(chosen_by, tokenizer, num_processes), reference_examples(card, tokenizer, num_processes)


def recall(engine: Engine, tokenizer: Any, plan: CalibrationPlan, recipe: Recipe, progress: Progress) -> Interval:
    """Share of what the card's prompts ask for that greedy answers contain, with Wilson's interval."""
    card = replace(plan.practice, seed=CARD_SEED + plan.practice.seed, count=plan.card_count)
    practices = make_practices(card, tokenizer)
    return wilson([answered.score for answered in answer_all(engine, tokenizer, practices, recipe, progress)])


def _mean(values: Sequence[float]) -> Interval:
    mean = stats.fmean(values)
    half = 1.96 * stats.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Interval(mean, mean - half, mean + half)
