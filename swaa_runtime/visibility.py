"""What a query sees (DESIGN §3), and what must therefore stay resident. Integers only.

`visible` is the rule itself, written to be obviously right. `query_runs` says the same of whole ranges, which is what
the fast attention paths use; `first_needed` says it of memory. Tests hold all of them to `visible`.

Positions are absolute. All ranges are half open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swaa_runtime.recipe import LayerRule


@dataclass(frozen=True, slots=True)
class Turn:
    """One prompt and what was generated for it: prompt [start, generated_start), generated [generated_start, stop).

    The turn that is being generated has no end yet: `stop` is None.
    """

    start: int
    generated_start: int
    stop: int | None = None


@dataclass(frozen=True, slots=True)
class QueryRun:
    """Consecutive queries [start, stop) of one layer that see either everything below them or sinks + window."""

    start: int
    stop: int
    sees_all: bool


def turn_of(turns: Sequence[Turn], position: int) -> Turn:
    """The turn that `position` belongs to; turns are consecutive and the last may be open."""
    for turn in reversed(turns):
        if turn.start <= position:
            return turn
    raise ValueError(f"position {position} lies before the first turn")


def looks_back(rule: LayerRule, turns: Sequence[Turn], position: int) -> bool:
    """full(p, l) of DESIGN §3: a generated token under full_decode, or of its turn's last full_tail prompt tokens."""
    turn = turn_of(turns, position)
    if position >= turn.generated_start:
        return rule.full_decode
    return position >= turn.generated_start - rule.full_tail


def visible(rule: LayerRule, turns: Sequence[Turn], query: int, key: int) -> bool:
    """Whether the query at one position sees the key at another: the definition, which all else must agree with."""
    if key > query:
        return False
    return rule.window is None or looks_back(rule, turns, query) or query - key < rule.window or key < rule.sink_tokens


def query_runs(rule: LayerRule, turns: Sequence[Turn], start: int, stop: int) -> list[QueryRun]:
    """Split queries [start, stop) into maximal runs that see everything, and runs that see sinks and window.

    A query at p < sink_tokens + window sees everything below it, so it goes with the runs that see all: that way sinks
    and window of the other runs never overlap, and the two can be attended apart and merged.
    """
    if rule.window is None:
        return [QueryRun(start, stop, True)]
    edges = [(start, min(stop, rule.sink_tokens + rule.window), True)]
    for turn in turns:
        end = stop if turn.stop is None else turn.stop
        tail = max(turn.start, turn.generated_start - rule.full_tail)
        edges.append((turn.start, tail, False))
        edges.append((tail, turn.generated_start, True))
        edges.append((turn.generated_start, end, rule.full_decode))
    runs: list[QueryRun] = []
    for low, high, sees_all in edges:
        low = max(low, runs[-1].stop if runs else start)
        high = min(high, stop)
        if low >= high:
            continue
        if runs and runs[-1].sees_all == sees_all:
            runs[-1] = QueryRun(runs[-1].start, high, sees_all)
        else:
            runs.append(QueryRun(low, high, sees_all))
    return runs


def keeps_everything(rule: LayerRule, num_computed_tokens: int, prompt_stop: int, continues: bool) -> bool:
    """Whether the layer must keep every token's KV because a query still to come may see it all.

    Args:
        num_computed_tokens: tokens computed so far; the next query is at this position.
        prompt_stop: end of the current turn's prompt.
        continues: whether another turn may follow from this state (a session), whose tail may look back.
    """
    if rule.window is None or rule.full_decode:
        return True
    return rule.full_tail > 0 and (continues or num_computed_tokens < prompt_stop)


def first_needed(rule: LayerRule, num_computed_tokens: int, keeps_all: bool) -> int:
    """First position after the sinks whose KV a query at `num_computed_tokens` or later can still see."""
    if keeps_all or rule.window is None:
        return rule.sink_tokens if rule.window is not None else 0
    return max(rule.sink_tokens, num_computed_tokens - rule.window + 1)


def layers_needed(rules: Sequence[LayerRule], prompt_stop: int, start: int, stop: int, block_size_tokens: int) -> int:
    """How many layers, from the first, prompt tokens [start, stop) must go through for the tokens after the prompt.

    In a layer that only slides, nobody beyond a window asks for a token's K and V. So of what lies far before the end,
    the layers above the last one that looks back need nothing: of the token n windows before the end, only the lowest
    L - n layers of L. Sinks are seen by all, and blocks are computed whole, as their rest must hold numbers.

    Holds for states of `prompt_stop` tokens and more: who wants one of fewer needs all layers.
    """
    wanted = prompt_stop - 1
    for layer in reversed(range(len(rules))):
        rule = rules[layer]
        wanted = 0 if rule.window is None or rule.looks_back else max(0, wanted - rule.window + 1)
        wanted -= wanted % block_size_tokens
        sinks = -(-rule.sink_tokens // block_size_tokens) * block_size_tokens
        if start < sinks or stop > wanted:
            return layer + 1
    return 0


def adapter_start(window: int | None, turns: Sequence[Turn]) -> int | None:
    """First position that a recipe's adapter applies to: that of the first turn whose prompt ends beyond the window.

    Up to there, nobody has seen less than everything, so the model runs as it was trained. From there on, all later
    turns use the adapter: a function of the turns alone, so that recomputing a session replays it. None: nowhere yet.
    """
    for turn in turns:
        if window is None or turn.generated_start > window:
            return turn.start
    return None


def attended_keys(rule: LayerRule, turns: Sequence[Turn], start: int, stop: int) -> int:
    """Number of (query, key) pairs that queries [start, stop) of this layer attend to: the work of attention."""
    pairs = 0
    for run in query_runs(rule, turns, start, stop):
        count = run.stop - run.start
        if run.sees_all:
            pairs += count * (run.start + run.stop + 1) // 2
        else:
            assert rule.window is not None  # noqa: S101 - query_runs splits only layers with a window
            pairs += count * (rule.sink_tokens + rule.window)
    return pairs
