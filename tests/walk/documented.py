"""What the documentation tells people to type: commands and Python of README.md and docs/*.md.

Fenced blocks say what they are. Of the README's indented blocks those are shell whose first line starts with a program.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGES = ("README.md", *(f"docs/{path.name}" for path in sorted((REPOSITORY / "docs").glob("*.md"))))

PROGRAMS = ("make ", ".venv/bin/", "docker ", "kubectl ", "curl ", "grpcurl ", "cp ", "sed ", "git ", "SWAA_", "OMP_")
"""What a command starts with. A shell block may have no other line, so that none is overlooked."""

_FENCED = re.compile(r"^```(?P<kind>[\w-]*)(?: (?P<name>\S+))?\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}\S.*\n(?:(?: {4}.*)?\n)*)")


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a page. `kind`: sh, python, yaml, text; `name`: of the file it is to be written to, or empty."""

    page: str
    kind: str
    name: str
    text: str


def blocks() -> list[Block]:
    """Of all pages, in order."""
    return [block for page in PAGES for block in blocks_of(page, (REPOSITORY / page).read_text(encoding="utf-8"))]


def blocks_of(page: str, text: str) -> Iterator[Block]:
    """Fenced ones, then indented ones."""
    for match in _FENCED.finditer(text):
        yield Block(page, match["kind"], match["name"] or "", match["body"])
    for match in _INDENTED.finditer(_FENCED.sub("fenced\n", text)):
        lines = [line[4:] for line in match[0].rstrip().splitlines()]
        kind = "sh" if lines[0].startswith(PROGRAMS) else "text"
        yield Block(page, kind, "", "\n".join(lines) + "\n")


def commands() -> list[tuple[str, str]]:
    """(page, command) of all shell blocks, continued lines as one."""
    return [(block.page, command) for block in blocks() if block.kind == "sh" for command in commands_of(block.text)]


def commands_of(text: str) -> list[str]:
    """The lines of a shell block, without comments at their ends."""
    lines = text.replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+#\s.*$", "", line).strip() for line in lines if line.strip() and not line.startswith("#")]
