"""A saved state with the right digests and values that no model writes harms its own session only, not the engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from services.errors import SessionCorrupt
from services.sessions.codec import segment_id
from swaa_runtime.request import SamplingParams
from tests.services.sessions.fake_store import FakeSessionStore

from .builders import NEW, SESSION, TENANT, KnownUse, asynchronous, make_job, make_replica, run_turn, running_engine

WARM = SamplingParams(max_tokens=4, temperature=1.0, seed=1, logprobs=3)


def made_up(store: FakeSessionStore, value: float) -> KnownUse:
    """The session as it is saved, all its KV replaced by this value."""
    manifest = store.manifests[TENANT, SESSION]
    refs = []
    for ref in manifest.segments:
        data = np.full(ref.num_bytes // 4, value, np.float32).tobytes()
        refs.append(replace(ref, segment_id=segment_id(data)))
        store.segments[TENANT, refs[-1].segment_id] = data
    forged = replace(manifest, segments=tuple(refs))
    store.manifests[TENANT, SESSION] = forged
    return KnownUse.of(forged)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@asynchronous
async def test_values_that_are_not_finite_are_computed_from_the_tokens(value: float) -> None:
    async with running_engine() as rig:
        store = FakeSessionStore()
        replica = make_replica(rig, store)
        await run_turn(replica, make_job(40, NEW))
        await rig.forget()
        ran = await run_turn(replica, replace(make_job(10, made_up(store, value)), sampling=WARM))
        assert ran.done.session is not None
        assert ran.done.session.history.startswith("recomputed"), ran.done.session.history
        assert "not all values are finite" in ran.done.session.history
        await replica.close()


@asynchronous
async def test_logits_that_are_no_numbers_end_their_own_turn_and_not_the_engine() -> None:
    async with running_engine() as rig:
        replica, logits = make_replica(rig, FakeSessionStore()), rig.runner.logits
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rig.runner, "logits", lambda hidden: logits(hidden) * float("nan"))
            with pytest.raises(SessionCorrupt, match="not finite"):
                await run_turn(replica, replace(make_job(10), sampling=WARM))
        assert len((await run_turn(replica, make_job(12))).tokens) == 6
        assert await rig.used_blocks() == 0
        await replica.close()
