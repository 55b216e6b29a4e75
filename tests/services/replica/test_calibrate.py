"""Calibration measures what this machine can hold, and leaves nothing behind."""

from __future__ import annotations

import math

import pytest

from services.cost import CostProfile
from services.replica.calibrate import MIB, Effort, calibrate, describe_hardware
from swaa_runtime.errors import OutOfCapacity
from tests.services.sessions.fake_store import FakeSessionStore
from tests.swaa_runtime.builders import engine_config, tiny_model

from .builders import asynchronous, running_engine


async def measure(effort: Effort, max_tokens: int, num_blocks: int = 2000) -> tuple[CostProfile, list[tuple[int, int]]]:
    store, seen = FakeSessionStore(), []
    async with running_engine(engine_config(num_blocks=num_blocks)) as rig:
        profile = await calibrate(
            tiny_model(), rig.loop, store, "raw", 32, max_tokens, effort, lambda done, total: seen.append((done, total))
        )
        assert await rig.used_blocks() == 0
    assert not store.manifests
    return profile, seen


@asynchronous
async def test_a_profile_of_this_machine() -> None:
    profile, seen = await measure(Effort((50, 100, 200), 1), 2048)
    assert seen == [(done, 10) for done in range(1, 11)]
    assert profile.model_fingerprint == tiny_model().fingerprint
    assert profile.hardware == describe_hardware(tiny_model().model.device)
    assert profile.max_step_tokens == 32
    prices = [value for value in profile.to_mapping().values() if isinstance(value, float)]
    assert len(prices) == 7
    assert all(0.0 <= price < math.inf for price in prices)
    assert profile.step_ms + profile.token_ms > 0.0
    assert profile.decode_step_ms + profile.decode_key_ns > 0.0
    assert 0.0 < profile.restore_ms_per_mib < 10_000
    assert CostProfile.from_mapping(profile.to_mapping()) == profile


@asynchronous
async def test_prompts_that_do_not_fit_are_left_out() -> None:
    _, seen = await measure(Effort((50, 100, 5000), 1), max_tokens=300, num_blocks=200)
    assert seen[-1] == (7, 7), "three recipes by two lengths, and restoring"


@asynchronous
async def test_too_little_memory_to_measure_anything_is_said() -> None:
    with pytest.raises(OutOfCapacity, match="there is room for 40 tokens, measuring costs needs at least 58"):
        await measure(Effort((50, 100), 1), max_tokens=40)


def test_sizes_are_binary() -> None:
    assert MIB == 1024 * 1024
