"""The soak itself, for some seconds on a tiny model: the same code as `make soak`."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.soak.run import Plan, soak
from tests.soak.service import served
from tests.soak.world import Sizes

pytestmark = [pytest.mark.model, pytest.mark.redis]

SIZES = Sizes(
    users=3,
    mean_pause_s=0.2,
    shared_tokens=130,
    prompt_tokens=(20, 200),
    answer_tokens=(2, 16),
    max_sessions=8,
    max_turns=4,
)
PLAN = Plan(minutes=1, minute_s=3.0, sizes=SIZES, checked_per_minute=6, seed=0, quota_mib=64)


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a path short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="swaa-soak-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def test_nothing_is_lost_wrong_or_held_under_a_mixed_load(folder: Path, tiny_folder: Path) -> None:
    cache = str(tiny_folder.parent)
    settings = {"model": str(tiny_folder), "dtype": "float32", "kv_memory_mib": "16", "cache_dir": cache}
    lines: list[str] = []
    with served(folder, {**settings, "checkpoint_tokens": "64", "session_quota_mib": "64"}) as (watched, text):
        held = asyncio.run(soak(watched, PLAN, text, lines.append))
    assert held, "\n".join(lines)
    figures = json.loads(lines[-1])
    assert figures["saved_turns"] > 0
    assert figures["oracle_checked"] > 0
    assert len(lines) == 1 + PLAN.minutes + 1
