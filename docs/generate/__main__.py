"""`python -m docs.generate` writes what is generated; with `--check` it only says what is stale, and fails."""

from __future__ import annotations

import sys

from docs.generate.pages import FOLDER, pages, stale


def main(arguments: list[str]) -> int:
    """The exit status."""
    made = pages()
    if arguments == ["--check"]:
        names = stale(made)
        for name in names:
            sys.stderr.write(f"docs/{name} is stale: run make docs\n")
        return 1 if names else 0
    for name, text in made.items():
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
