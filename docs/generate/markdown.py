"""Markdown from rows, and pages whose marked parts are generated."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_SECTION = re.compile(r"(<!-- generated: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; `|` and line breaks in cells are taken care of. Raises ValueError for a row of another length."""
    lines = [header, ["---"] * len(header), *rows]
    for row in lines:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells, the header {len(header)}: {row}")
    return "".join(f"| {' | '.join(map(_cell, row))} |\n" for row in lines)


def code(text: str) -> str:
    """As code; nothing stays nothing."""
    return f"`{text}`" if text else ""


def sections(page: str) -> list[str]:
    """Names of a page's generated parts, in order."""
    return [match["name"] for match in _SECTION.finditer(page)]


def fill(page: str, parts: Mapping[str, str]) -> str:
    """The page with its generated parts as they are now. Raises KeyError for a part that nobody generates."""
    return _SECTION.sub(lambda match: f"{match[1]}\n{parts[match['name']].strip()}\n\n{match[3]}", page)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
