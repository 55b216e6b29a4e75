"""What turns cost on this hardware: a small physical model of one engine step, whose prices are measured.

A step runs chunks of several requests: pieces of prompts, and single tokens of answers. It takes

    prompt_steps   * prompt_step_ms      what a step with prompt tokens takes besides
  + prompt_tokens  * token_ms            projections and feed-forward: arithmetic
  + pairs_all      * pair_ns             attention of prompt tokens that see everything, per (query, key)
  + pairs_window   * window_pair_ns      of those that see sinks and window: other kernels
  + window_queries * window_query_ns     the edges of their tiles, and merging sinks with window
  + keys           * key_ns              memory traffic: collecting the K and V a chunk attends to, once a chunk
  + calls          * call_ns             starting the attention of a chunk
  + decode_steps   * decode_step_ms      a step that has nothing but answers' tokens: reading the weights
  + decode_rows    * decode_row_ms       an answer's token in any step: its projections, its logits, the draw
  + decode_keys    * decode_key_ns       memory traffic of its attention, per key it sees
  + mixed_rows     * mixed_row_ms        what it takes more in a step with prompts: there it is a chunk like theirs

All that is attention's is counted over layers. Arithmetic binds a step that has prompt tokens, reading the weights one
that has not: hence a price for each, not one for both.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from operator import add, attrgetter
from typing import Any

from swaa_runtime.errors import InvalidRequest
from swaa_runtime.recipe import LayerRule
from swaa_runtime.visibility import Turn, keeps_everything, query_runs

PROFILE_VERSION = 3

PROMPT_PRICES = {
    "prompt_steps": "prompt_step_ms",
    "prompt_tokens": "token_ms",
    "pairs_all": "pair_ns",
    "pairs_window": "window_pair_ns",
    "window_queries": "window_query_ns",
    "keys": "key_ns",
    "calls": "call_ns",
}
"""Counts of `StepWork` that prompts make, and the names of their prices."""

DECODE_PRICES = {
    "decode_steps": "decode_step_ms",
    "decode_rows": "decode_row_ms",
    "decode_keys": "decode_key_ns",
    "mixed_rows": "mixed_row_ms",
}
"""The same of answers."""

PRICES = PROMPT_PRICES | DECODE_PRICES


def ms_per(price: str) -> float:
    """Milliseconds in the unit of a price, by its name."""
    return 1e-6 if price.endswith("_ns") else 1.0


_MS_PER = {name: ms_per(name) for name in PRICES.values()}

LayerCounts = Mapping[LayerRule, int]
"""How many layers have each rule."""

MAX_COUNTED = 1024
"""Requests whose layers are kept counted."""


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one or several steps have to do; see the module's text. Work of several adds up."""

    prompt_steps: float = 0.0
    prompt_tokens: float = 0.0
    pairs_all: float = 0.0
    pairs_window: float = 0.0
    window_queries: float = 0.0
    keys: float = 0.0
    calls: float = 0.0
    decode_steps: float = 0.0
    decode_rows: float = 0.0
    decode_keys: float = 0.0
    mixed_rows: float = 0.0

    def __add__(self, other: StepWork) -> StepWork:
        return StepWork(*map(add, _COUNTS(self), _COUNTS(other)))


_COUNTS = attrgetter(*PRICES)  # in the order of the fields; quicker than `astuple`


@dataclass(frozen=True, slots=True)
class CostProfile:
    """Measured prices of one model on one machine; see the module's text.

    Attributes:
        model_fingerprint, hardware, measured_at: what they hold for, and when they were taken (ISO date and time).
        max_step_tokens: step budget they were measured under.
        restore_ms_per_mib: fetching, checking and placing saved KV.
        error_median, error_p95: relative error of predicted TTFT on prompts that the prices were not fitted on; None
            where that was not measured.
    """

    model_fingerprint: str
    hardware: str
    measured_at: str
    max_step_tokens: int
    prompt_step_ms: float
    token_ms: float
    pair_ns: float
    window_pair_ns: float
    decode_step_ms: float
    decode_key_ns: float
    restore_ms_per_mib: float
    window_query_ns: float = 0.0
    key_ns: float = 0.0
    call_ns: float = 0.0
    decode_row_ms: float = 0.0
    mixed_row_ms: float = 0.0
    error_median: float | None = None
    error_p95: float | None = None
    version: int = PROFILE_VERSION

    def to_mapping(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @property
    def source(self) -> str:
        """Where and when it was measured."""
        return f"{self.hardware}, {self.measured_at}"

    @classmethod
    def from_mapping(cls, mapping: Any) -> CostProfile:
        """Read back `to_mapping`. Raises InvalidRequest if it is not a profile of this version."""
        if not isinstance(mapping, dict):
            raise InvalidRequest("profile", mapping, "must be a JSON object; calibrate again")
        if mapping.get("version") != PROFILE_VERSION:
            raise InvalidRequest(
                "profile version", mapping.get("version"), f"must be {PROFILE_VERSION}; calibrate again"
            )
        names = {field.name for field in fields(cls)}
        if set(mapping) != names:
            raise InvalidRequest(
                "profile", sorted(set(mapping) ^ names), "has missing or unknown fields; calibrate again"
            )
        for field in fields(cls):
            value = mapping[field.name]
            given = field.type == "float" or (field.type == "float | None" and value is not None)
            if given and not _is_price(value):
                raise InvalidRequest(f"profile {field.name}", value, "must be a number of at least 0; calibrate again")
        return cls(**mapping)

    def prompt_ms(self, work: StepWork) -> float:
        """The part of steps' time that prompts make."""
        return self._ms(work, PROMPT_PRICES)

    def prompt_parts_ms(self, work: StepWork) -> tuple[float, float]:
        """The same in two parts: what each step takes besides, and what grows with its prompts."""
        besides_ms = work.prompt_steps * self.prompt_step_ms
        return besides_ms, self.prompt_ms(work) - besides_ms

    def decode_ms(self, work: StepWork) -> float:
        """The part of steps' time that answers make."""
        return self._ms(work, DECODE_PRICES)

    def step_ms(self, work: StepWork) -> float:
        """Predicted time of one step, or of several."""
        return self.prompt_ms(work) + self.decode_ms(work)

    def prefill_ms(self, work: PrefillWork) -> float:
        """Predicted time from the first step to the first token, alone on the replica."""
        return self.prompt_ms(work.in_steps(self.max_step_tokens))

    def chunk_ms(self, layers: LayerCounts, turns: Sequence[Turn], start: int, stop: int) -> float:
        """What a chunk of the prompt tokens [start, stop) takes beside their number: how much more many chunks take.

        That of the one in the middle alone: collecting keys, and starting attention in each layer.
        """
        return self.prompt_ms(chunk_work(layers, turns, (start + stop - 1) // 2, 1))

    def answer_ms(self, num_keys: float) -> float:
        """What a generated token adds to a step without prompts when it sees `num_keys` keys, summed over layers."""
        return self.decode_ms(StepWork(decode_rows=1.0, decode_keys=num_keys))

    def tpot_ms(self, num_keys: float) -> float:
        """Predicted time per generated token when it attends to `num_keys` keys, summed over layers."""
        return self.decode_ms(StepWork(decode_steps=1.0, decode_rows=1.0, decode_keys=num_keys))

    def corrected(self, step_factor: float, prompt_factor: float, decode_factor: float) -> CostProfile:
        """The same with the price of a prompts' step times a factor, and all others of prompts and of answers too."""
        factors = dict.fromkeys(PROMPT_PRICES.values(), prompt_factor) | {"prompt_step_ms": step_factor}
        factors |= dict.fromkeys(DECODE_PRICES.values(), decode_factor)
        return replace(self, **{name: getattr(self, name) * factor for name, factor in factors.items()})

    def _ms(self, work: StepWork, prices: Mapping[str, str]) -> float:
        return sum(float(getattr(work, count) * getattr(self, name)) * _MS_PER[name] for count, name in prices.items())


@dataclass(frozen=True, slots=True)
class _Span:
    """Queries [start, stop) of some layers: they see everything (`reach` None), or `reach` keys, sinks and window."""

    num_layers: int
    start: int
    stop: int
    reach: int | None

    @property
    def pairs(self) -> int:
        count = self.stop - self.start
        keys = (self.start + self.stop + 1) / 2 if self.reach is None else self.reach
        return round(self.num_layers * count * keys)

    def in_chunks(self, start: int, chunk_tokens: int) -> StepWork:
        """Its attention, when queries from `start` on are run in chunks of so many: in closed form."""
        first, last = (self.start - start) // chunk_tokens, (self.stop - 1 - start) // chunk_tokens
        chunks, count, layers = last - first + 1, self.stop - self.start, self.num_layers
        if self.reach is None:  # every chunk collects all keys up to its own end, the last one up to the span's
            ends = (chunks - 1) * start + chunk_tokens * (first + 1 + last) * (chunks - 1) / 2 + self.stop
            return StepWork(pairs_all=self.pairs, keys=layers * ends, calls=layers * chunks)
        return StepWork(
            pairs_window=self.pairs,
            window_queries=layers * count,
            keys=layers * (count + chunks * (self.reach - 1)),
            calls=layers * chunks,
        )


@dataclass(frozen=True, slots=True)
class PrefillWork:
    """What must be computed before the first new token: tokens [start, stop)."""

    start: int
    stop: int
    spans: tuple[_Span, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens to compute."""
        return self.stop - self.start

    @property
    def pairs_all(self) -> int:
        """(query, key) pairs of queries that see everything, over layers."""
        return sum(span.pairs for span in self.spans if span.reach is None)

    @property
    def pairs_window(self) -> int:
        """(query, key) pairs of queries that see sinks and window, over layers."""
        return sum(span.pairs for span in self.spans if span.reach is not None)

    def in_steps(self, max_step_tokens: int) -> StepWork:
        """The same run alone, in steps of so many tokens."""
        work = StepWork(prompt_steps=-(-self.num_tokens // max_step_tokens), prompt_tokens=self.num_tokens)
        for span in self.spans:
            work += span.in_chunks(self.start, max_step_tokens)
        return work


def prefill_work(rules: Sequence[LayerRule], turns: Sequence[Turn], start: int, stop: int) -> PrefillWork:
    """Work of computing tokens [start, stop) of a session under a recipe's rules."""
    return prefill_work_of(count_layers(rules), turns, start, stop)


def prefill_work_of(layers: LayerCounts, turns: Sequence[Turn], start: int, stop: int) -> PrefillWork:
    """The same where the layers are counted already."""
    return PrefillWork(start, stop, tuple(_spans(layers, turns, start, stop)))


def chunk_work(layers: LayerCounts, turns: Sequence[Turn], start: int, num_tokens: int) -> StepWork:
    """Work of one request's chunk in a step, beside what the step takes for all (see `step_work`)."""
    if is_answer(turns, start, num_tokens):
        return StepWork(decode_rows=1.0, decode_keys=decode_keys_of(layers, start))
    work = StepWork(prompt_tokens=num_tokens)
    for span in _spans(layers, turns, start, start + num_tokens):
        work += span.in_chunks(start, num_tokens)
    return work


def is_answer(turns: Sequence[Turn], start: int, num_tokens: int) -> bool:
    """Whether a chunk is a token of an answer."""
    return num_tokens == 1 and start >= turns[-1].generated_start


def step_work(chunks: Iterable[StepWork]) -> StepWork:
    """Work of one step that runs these chunks."""
    columns = zip(*map(_COUNTS, chunks), strict=True)  # one object a step, not one a chunk: this is asked for often
    work = StepWork(*map(sum, columns))
    if work.prompt_tokens:
        return work + StepWork(prompt_steps=1.0, mixed_rows=work.decode_rows)
    return work + StepWork(decode_steps=1.0)


def decode_keys(rules: Sequence[LayerRule], position: int) -> int:
    """Keys that a generated token at `position` attends to, summed over layers."""
    return decode_keys_of(count_layers(rules), position)


def decode_keys_of(layers: LayerCounts, position: int) -> int:
    """The same where the layers are counted already; it is asked for every answer in every step."""
    total = 0
    for rule, count in layers.items():
        if rule.window is None or rule.full_decode:
            total += count * (position + 1)
        else:
            total += count * min(position + 1, rule.sink_tokens + rule.window)
    return total


def kv_tokens(rules: Sequence[LayerRule], num_tokens: int, continues: bool) -> int:
    """Tokens' KV that stay resident after a prompt of `num_tokens`, summed over layers."""
    total = 0
    for rule, count in count_layers(rules).items():
        if rule.window is None or keeps_everything(rule, num_tokens, num_tokens, continues):
            total += count * num_tokens
        else:
            total += count * min(num_tokens, rule.sink_tokens + rule.window - 1)
    return total


def count_layers(rules: Sequence[LayerRule]) -> dict[LayerRule, int]:
    """How many layers have each rule."""
    counts: dict[LayerRule, int] = {}
    for rule in rules:
        counts[rule] = counts.get(rule, 0) + 1
    return counts


class CountedLayers:
    """Counts layers once a request: its rules are one object from beginning to end, and are held here meanwhile."""

    def __init__(self) -> None:
        self._counted: OrderedDict[int, tuple[Sequence[LayerRule], LayerCounts]] = OrderedDict()

    def of(self, rules: Sequence[LayerRule]) -> LayerCounts:
        """The same as `count_layers`."""
        known = self._counted.get(id(rules))
        if known is None:
            known = self._counted[id(rules)] = (rules, count_layers(rules))
            if len(self._counted) > MAX_COUNTED:
                self._counted.popitem(last=False)
        return known[1]


def _spans(layers: LayerCounts, turns: Sequence[Turn], start: int, stop: int) -> Iterator[_Span]:
    for rule, count in layers.items():
        for run in query_runs(rule, turns, start, stop):
            reach = None if run.sees_all or rule.window is None else rule.sink_tokens + rule.window
            yield _Span(count, run.start, run.stop, reach)


def _is_price(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value < math.inf
