"""Every promise of SECURITY.md is shown by a test that there is, or marked as one that is to come."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")
PROMISES = PAGE[PAGE.index("## Promises") : PAGE.index("## Not promised")]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_test_that_is_named_exists() -> None:
    named = TEST.findall(PAGE)
    assert len(named) > 40
    for path, name in named:
        source = (REPOSITORY / path).read_text(encoding="utf-8")
        assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE), f"{path} has no {name}"


def test_every_promise_is_shown_by_something() -> None:
    rows = [
        line for line in PROMISES.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "| ---"))
    ]
    assert len(rows) > 20
    for row in rows:
        _, promise, shown, _ = (cell.strip() for cell in row.split("|"))
        assert TEST.search(shown), promise


def test_files_that_are_named_exist() -> None:
    for path in re.findall(r"`((?:tests|docs|deps|k8s)/[\w/.-]+\.\w+)`", PAGE):
        assert (REPOSITORY / path).exists(), path
