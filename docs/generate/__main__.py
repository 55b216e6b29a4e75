"""`python -m docs.generate` writes what is generated. Whether it is current, `tests/docs` says."""

from __future__ import annotations

from docs.generate.pages import FOLDER, pages


def main() -> None:
    """Write all pages and pictures."""
    for name, text in pages().items():
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
