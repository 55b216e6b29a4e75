"""Pictures of the kinds of recipes, drawn from the rule itself (`swaa_runtime.visibility`), as SVG.

Left, one grid for each rule that the recipe has: a row is a query, a column a key. Right: layers by positions, the KV
that is resident while the answer is generated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape

from swaa_runtime.recipe import LayerRule, Recipe
from swaa_runtime.visibility import Turn, first_needed, keeps_everything, visible

NUM_LAYERS = 6
PROMPT_TOKENS = 18
NUM_TOKENS = 24
TURNS = (Turn(0, PROMPT_TOKENS),)

CELL, GAP, MARGIN, LINE = 10, 28, 16, 14  # pixels
SIDE = NUM_TOKENS * CELL

KIND_COLOURS = {"sink": "#b45309", "window": "#2563eb", "back": "#059669", "hidden": "#e5e7eb"}
KIND_NAMES = {
    "sink": "sink tokens",
    "window": "window",
    "back": "everything",
    "hidden": "not seen, or not kept",
}
"""Why a query sees a key. A key in the window counts as that."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of recipe, small enough to draw: 6 layers, 18 prompt tokens, 6 generated ones."""

    title: str
    recipe: Recipe


KINDS = {
    "full": Kind("full attention", Recipe()),
    "sliding": Kind("sliding with sinks", Recipe(window=5, sink_tokens=2)),
    "sliding-decode": Kind("sliding, the answer looks back", Recipe(window=5, sink_tokens=2, full_decode=True)),
    "interleaved": Kind(
        "every second layer full, the answer looks back",
        Recipe(window=5, sink_tokens=2, full_layers="1::2", full_decode=True),
    ),
    "tail": Kind(
        "sliding, the prompt's tail and the answer look back",
        Recipe(window=5, sink_tokens=2, full_decode=True, full_tail=4),
    ),
    "lookback": Kind(
        "only some layers look back",
        Recipe(window=5, sink_tokens=2, lookback_layers=(2, 4), full_decode=True, full_tail=4),
    ),
}


def pictures() -> dict[str, str]:
    """SVG by kind."""
    return {name: picture(kind) for name, kind in KINDS.items()}


def why_seen(rule: LayerRule, query: int, key: int) -> str:
    """A name of KIND_COLOURS for a key that is not after the query."""
    if not visible(rule, TURNS, query, key):
        return "hidden"
    if rule.window is None:
        return "back"
    if query - key < rule.window:
        return "window"
    return "sink" if key < rule.sink_tokens else "back"


def why_kept(rule: LayerRule, position: int) -> str:
    """The same for KV of a position, when all tokens but the last are computed, in a request without a session."""
    computed = NUM_TOKENS - 1
    if keeps_everything(rule, computed, PROMPT_TOKENS, False):
        return "back"
    if position < rule.sink_tokens:
        return "sink"
    return "window" if position >= first_needed(rule, computed, False) else "hidden"


def picture(kind: Kind) -> str:
    """One SVG."""
    rules = kind.recipe.resolve(NUM_LAYERS)
    grids: dict[LayerRule, list[int]] = {}
    for layer, rule in enumerate(rules):
        grids.setdefault(rule, []).append(layer)
    parts: list[str] = []
    left = MARGIN
    top = MARGIN + 2 * LINE
    for rule, layers in grids.items():
        parts.append(_text(left, top - 6, f"attention in {_layers(layers)}: query (row), key (column)"))
        parts.extend(_cells(left, top, NUM_TOKENS, _row_of(rule)))
        parts.append(_rule_line(left, top + PROMPT_TOKENS * CELL, SIDE, 0))
        left += SIDE + GAP
    parts.append(_text(left, top - 6, "KV kept: layer (row), position (column)"))
    parts.extend(
        _cells(left, top, NUM_LAYERS, lambda layer: [why_kept(rules[layer], p) for p in range(NUM_TOKENS - 1)])
    )
    parts.append(_rule_line(left + PROMPT_TOKENS * CELL, top, 0, NUM_LAYERS * CELL))
    parts.extend(_legend(left, top + (NUM_LAYERS + 2) * CELL))
    return _document(kind.title, left + SIDE + MARGIN, top + SIDE + MARGIN, parts)


def _row_of(rule: LayerRule) -> Callable[[int], list[str]]:
    return lambda query: [why_seen(rule, query, key) for key in range(query + 1)]


def _cells(left: int, top: int, num_rows: int, row: Callable[[int], list[str]]) -> Iterator[str]:
    """One path for each colour."""
    squares: dict[str, list[str]] = {}
    for y in range(num_rows):
        for x, kind in enumerate(row(y)):
            squares.setdefault(kind, []).append(f"M{left + x * CELL} {top + y * CELL}h9v9h-9z")
    for kind, paths in sorted(squares.items()):
        yield f'<path fill="{KIND_COLOURS[kind]}" d="{"".join(paths)}"/>'


def _legend(left: int, top: int) -> Iterator[str]:
    for index, (kind, name) in enumerate(KIND_NAMES.items()):
        y = top + index * LINE
        yield f'<path fill="{KIND_COLOURS[kind]}" d="M{left} {y}h9v9h-9z"/>'
        yield _text(left + 2 * CELL, y + 9, name)
    yield _text(left, top + (len(KIND_NAMES) + 1) * LINE, f"lines: the answer starts after {PROMPT_TOKENS} tokens")


def _rule_line(x: int, y: int, width: int, height: int) -> str:
    return f'<path stroke="#111827" d="M{x} {y - 0.5}h{width}v{height}"/>'


def _text(x: int, y: int, text: str) -> str:
    return f'<text x="{x}" y="{y}">{escape(text)}</text>'


def _layers(layers: list[int]) -> str:
    return "every layer" if len(layers) == NUM_LAYERS else f"layers {', '.join(map(str, layers))}"


def _document(title: str, width: int, height: int, parts: list[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="sans-serif" font-size="10" fill="#111827">'
    )
    lines = [head, f"<title>{escape(title)}</title>", f'<rect width="{width}" height="{height}" fill="#ffffff"/>']
    lines.append(f'<text x="{MARGIN}" y="{MARGIN}" font-size="13" font-weight="bold">{escape(title)}</text>')
    return "\n".join([*lines, *parts, "</svg>"]) + "\n"
