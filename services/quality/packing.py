"""Several examples in one row of tokens, and the attention of a differentiable forward over it under a recipe.

The engine's attention is built for serving and has no gradient. This one runs whole examples at once, from the same
rule (`swaa_runtime.visibility`): a query sees keys [low, itself] and the sinks of its example, nothing of others.

    row      | example 0        | example 1      | padding |
    query q  sees [first, sink_stop) and [low, q]   where first is its example's first row
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from services.quality.examples import Example
from swaa_runtime.errors import InvalidRequest
from swaa_runtime.recipe import LayerRule
from swaa_runtime.visibility import query_runs


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Samples side by side in T rows; the rest is padding that sees itself only.

    Attributes:
        examples: in row order. first_rows: the first row of each.
        token_ids, positions: int64 [T].
        target_rows: int64 [n], the rows whose next token is an answer token; target_ids: int64 [n], those tokens.
        target_examples: int64 [n], which example each belongs to.
    """

    examples: tuple[Example, ...]
    first_rows: tuple[int, ...]
    token_ids: torch.Tensor
    positions: torch.Tensor
    target_rows: torch.Tensor
    target_ids: torch.Tensor
    target_examples: torch.Tensor

    @property
    def num_rows(self) -> int:
        """T, padding included."""
        return int(self.token_ids.shape[0])


@dataclass(frozen=True, slots=True)
class VisibleRanges:
    """What each of T rows sees under one rule: keys [first, sink_stop) and [low, itself]; each int32 [T]."""

    first: torch.Tensor
    sink_stop: torch.Tensor
    low: torch.Tensor

    def mask(self, queries: torch.Tensor | None = None) -> torch.Tensor:
        """The same as bool [queries, T keys], of all rows or the given ones."""
        rows = torch.arange(self.low.shape[0], device=self.low.device)
        query, key = (rows if queries is None else queries)[:, None], rows[None, :]
        first, sink_stop, low = (part[query] for part in (self.first, self.sink_stop, self.low))
        return (key <= query) & (((key >= first) & (key < sink_stop)) | (key >= low))


def pack(examples: Sequence[Example], num_rows: int, device: torch.device | str = "cpu") -> PackedBatch:
    """Put examples into `num_rows` rows. Raises InvalidRequest if they do not fit."""
    total = sum(len(example.token_ids) for example in examples)
    if total > num_rows:
        raise InvalidRequest("examples", f"{total} tokens", f"must fit into {num_rows} rows")
    token_ids: list[int] = []
    positions: list[int] = []
    first_rows: list[int] = []
    rows: list[int] = []
    ids: list[int] = []
    owners: list[int] = []
    for index, example in enumerate(examples):
        first = len(token_ids)
        first_rows.append(first)
        token_ids += example.token_ids
        positions += range(len(example.token_ids))
        for start, stop in example.answer_spans:
            rows += range(first + start - 1, first + stop - 1)
            ids += example.token_ids[start:stop]
            owners += [index] * (stop - start)
    padding = num_rows - total

    def tensor(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return PackedBatch(
        tuple(examples),
        tuple(first_rows),
        tensor(token_ids + [0] * padding),
        tensor(positions + [0] * padding),
        tensor(rows),
        tensor(ids),
        tensor(owners),
    )


def plan_packs(lengths: Sequence[int], order: Iterable[int], num_rows: int) -> list[list[int]]:
    """Which examples go together: in the given order, a new pack whenever the next one does not fit.

    Raises:
        InvalidRequest: for an example that is longer than a pack.
    """
    packs: list[list[int]] = []
    free = 0
    for index in order:
        if lengths[index] > num_rows:
            raise InvalidRequest("examples", f"{lengths[index]} tokens", f"must fit into a pack of {num_rows} tokens")
        if lengths[index] > free:
            packs.append([])
            free = num_rows
        packs[-1].append(index)
        free -= lengths[index]
    return packs


def visible_ranges(batch: PackedBatch, rule: LayerRule) -> VisibleRanges:
    """What every row sees under the rule, from the turns of the examples' labels."""
    own = torch.arange(batch.num_rows, dtype=torch.int32)
    first, sink_stop, low = own.clone(), own.clone(), own.clone()
    for example, start in zip(batch.examples, batch.first_rows, strict=True):
        stop = start + len(example.token_ids)
        first[start:stop] = start
        sink_stop[start:stop] = start + rule.sink_tokens
        for run in query_runs(rule, example.turns, 0, len(example.token_ids)):
            rows = slice(start + run.start, start + run.stop)
            low[rows] = start if run.sees_all or rule.window is None else own[rows] - rule.window + 1
    device = batch.token_ids.device
    return VisibleRanges(first.to(device), sink_stop.to(device), low.to(device))


class PackedKernel(Protocol):
    """Attention over packed rows. `prepare` turns ranges into whatever `attend` takes as its mask."""

    def prepare(self, ranges: VisibleRanges) -> object:
        """Once per batch and rule."""
        ...

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: object, scale: float
    ) -> torch.Tensor:
        """query [num_heads, T, head_dim], key and value [num_kv_heads, T, head_dim]; [num_heads, T, head_dim]."""
        ...


class DenseKernel:
    """torch's own attention under a dense mask: any device, memory of T squared bits."""

    def prepare(self, ranges: VisibleRanges) -> object:
        """See PackedKernel.prepare."""
        return ranges.mask()

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: object, scale: float
    ) -> torch.Tensor:
        """See PackedKernel.attend."""
        assert isinstance(mask, torch.Tensor)  # noqa: S101 - what prepare returned
        return torch.nn.functional.scaled_dot_product_attention(
            query[None], key[None], value[None], mask[None, None], scale=scale, enable_gqa=True
        )[0]


class PackedMasks:
    """The masks of one batch, made once per rule: what many forwards over the same batch share."""

    def __init__(self, batch: PackedBatch, kernel: PackedKernel) -> None:
        self.batch = batch
        self.kernel = kernel
        self._masks: dict[LayerRule, object] = {}

    def of(self, rule: LayerRule) -> object:
        """The kernel's mask of a rule."""
        if rule not in self._masks:
            self._masks[rule] = self.kernel.prepare(visible_ranges(self.batch, rule))
        return self._masks[rule]

    def rows(self, rule: LayerRule, queries: torch.Tensor) -> torch.Tensor:
        """What some rows see under a rule: bool [queries, T]."""
        return visible_ranges(self.batch, rule).mask(queries)


class PackedContext:
    """The attention context (`swaa_runtime.attention.backend.AttentionContext`) of one forward over packed examples."""

    def __init__(self, masks: PackedMasks, rules: Sequence[LayerRule]) -> None:
        self._kernel = masks.kernel
        self._masks = [masks.of(rule) for rule in rules]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """As `AttentionContext.attend`; differentiable."""
        return self._kernel.attend(query, key, value, self._masks[layer], scale).transpose(0, 1)
