"""Which layers should see everything: chosen by how likely the right answers are, or by where attention goes.

All scores are of calibration examples, teacher-forced; those that a quality card is made of must be others.

    leave one out   importance of a layer: how much less likely answers are when it alone slides (arXiv 2606.27791)
    greedy          start with none; add the layer that makes answers likeliest, again and again
    lazy ratio      baseline, after LightTransfer (arXiv 2410.13846): a layer whose last queries look at sinks and
                    recent tokens anyway may slide; the least lazy ones are kept
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from services.quality.forward import answer_logits, mean_nll
from services.quality.packing import PackedContext, PackedMasks
from swaa_runtime.errors import InvalidRequest
from swaa_runtime.recipe import LayerRule, Recipe

Kind = Literal["full", "lookback"]
"""What chosen layers do: attend fully always, or slide and let tail and answer look back."""

SWAPPED = "greedy and swaps"
LAZY_QUERIES = 64
"""LightTransfer looks at the last queries of the prompt only."""

Score = Callable[[Recipe], float]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Choice:
    """Layers in the order of their importance, the most important first.

    Attributes:
        method: how they were chosen.
        order: the layers; of a greedy choice only as many as were asked for.
        figures: by layer, what the order came from: NLL increase, NLL when added, or share of attention not lazy.
    """

    method: str
    order: tuple[int, ...]
    figures: dict[int, float]

    def top(self, count: int) -> tuple[int, ...]:
        """The `count` most important layers, ascending."""
        return tuple(sorted(self.order[:count]))


class Scorer:
    """Mean NLL (nats per answer token, over examples) of recipes on the same packs. Masks are made once per rule."""

    def __init__(self, model: Any, packs: Sequence[PackedMasks], num_layers: int) -> None:
        self.num_layers = num_layers
        self._model, self._packs = model, packs

    def each(self, recipe: Recipe) -> list[float]:
        """Mean NLL of each example."""
        return mean_nll(self._model, self._packs, recipe.resolve(self.num_layers))

    def __call__(self, recipe: Recipe) -> float:
        """Mean over all examples."""
        values = self.each(recipe)
        return sum(values) / len(values)


def with_layers(base: Recipe, kind: Kind, layers: Sequence[int]) -> Recipe:
    """The base recipe with these layers full, or looking back and no others.

    Raises:
        InvalidRequest: if layers are to look back under a recipe in which none does.
    """
    if kind == "full":
        return replace(base, full_layers=tuple(layers))
    if not base.full_decode and not base.full_tail:
        raise InvalidRequest("recipe", base.to_mapping(), "must have full_decode or full_tail for layers to look back")
    return replace(base, lookback_layers=tuple(layers))


def leave_one_out(score: Score, base: Recipe, kind: Kind, num_layers: int, progress: Progress) -> Choice:
    """By the NLL increase when a layer alone is taken out of all."""
    everything = range(num_layers)
    whole = score(with_layers(base, kind, everything))
    figures = {}
    for layer in everything:
        figures[layer] = score(with_layers(base, kind, [other for other in everything if other != layer])) - whole
        progress(layer + 1, num_layers)
    return Choice("leave-one-out NLL", _by_figure(figures), figures)


def greedy(
    score: Score,
    base: Recipe,
    kind: Kind,
    candidates: Sequence[int],
    count: int,
    progress: Progress,
    start: Sequence[int] = (),
) -> Choice:
    """Add `count` layers of the candidates to `start`, each time the one after which answers are likeliest."""
    chosen, left = list(start), [layer for layer in candidates if layer not in start]
    total, done = sum(len(left) - at for at in range(min(count, len(left)))), 0
    figures: dict[int, float] = {}
    for _ in range(min(count, len(left))):
        tried = {}
        for layer in left:
            tried[layer] = score(with_layers(base, kind, [*chosen, layer]))
            done += 1
            progress(done, total)
        best = min(tried, key=lambda layer: (tried[layer], layer))
        figures[best] = tried[best]
        chosen.append(best)
        left.remove(best)
    return Choice("greedy NLL", tuple(chosen), figures)


def swap(score: Score, base: Recipe, kind: Kind, chosen: Sequence[int], num_layers: int, rounds: int = 1) -> Choice:
    """Exchange the layer that is missed least for the one that helps most, as long as answers get likelier."""
    best, best_score = list(chosen), score(with_layers(base, kind, chosen))
    for _ in range(rounds):
        without = {layer: score(with_layers(base, kind, [at for at in best if at != layer])) for layer in best}
        weakest = min(without, key=lambda layer: (without[layer], layer))
        rest = [layer for layer in best if layer != weakest]
        added = {at: score(with_layers(base, kind, [*rest, at])) for at in range(num_layers) if at not in best}
        newcomer = min(added, key=lambda layer: (added[layer], layer))
        if added[newcomer] >= best_score:
            break
        best, best_score = [*rest, newcomer], added[newcomer]
    return Choice(SWAPPED, tuple(best), dict.fromkeys(best, best_score))


@torch.no_grad()
def lazy_ratio(model: Any, packs: Sequence[PackedMasks], base: Recipe, num_layers: int, progress: Progress) -> Choice:
    """By the attention of the last prompt queries, under full attention, that goes to neither sinks nor window."""
    if base.window is None:
        raise InvalidRequest("recipe.window", None, "must be a number of tokens")
    full, sliding = (LayerRule(),) * num_layers, LayerRule(window=base.window, sink_tokens=base.sink_tokens)
    sums = torch.zeros(num_layers)
    for done, masks in enumerate(packs, start=1):
        context = _LazyContext(masks, full, sliding)
        answer_logits(model, masks.batch, context)
        sums += context.lazy.cpu()
        progress(done, len(packs))
    figures = {layer: 1.0 - float(value) for layer, value in enumerate(sums / len(packs))}
    return Choice("lazy ratio", _by_figure(figures), figures)


class _LazyContext(PackedContext):
    """Full attention that also measures, per layer, the mass that the last prompt queries put on sinks and window."""

    def __init__(self, masks: PackedMasks, full: Sequence[LayerRule], sliding: LayerRule) -> None:
        super().__init__(masks, full)
        batch = masks.batch
        rows: list[int] = []
        for example, first in zip(batch.examples, batch.first_rows, strict=True):
            stop = first + example.answer_spans[0][0]
            rows += range(max(first, stop - LAZY_QUERIES), stop)
        device = batch.token_ids.device
        self.lazy = torch.zeros(len(full), device=device)
        self._rows = torch.tensor(rows, device=device)
        self._seen = masks.rows(LayerRule(), self._rows)
        self._near = masks.rows(sliding, self._rows)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See PackedContext.attend."""
        group = query.shape[0] // key.shape[0]
        scores = query[:, self._rows].float() @ key.float().repeat_interleave(group, dim=0).transpose(-1, -2) * scale
        weights = scores.masked_fill(~self._seen, -torch.inf).softmax(dim=-1)
        self.lazy[layer] = (weights * self._near).sum(dim=-1).mean()
        return super().attend(layer, query, key, value, scale)


def _by_figure(figures: dict[int, float]) -> tuple[int, ...]:
    return tuple(sorted(figures, key=lambda layer: (-figures[layer], layer)))
