"""Every block of the pool is told as one kind of use, at every moment of any mix of requests."""

from __future__ import annotations

from swaa_runtime.recipe import LayerRule, Recipe
from swaa_runtime.usage import layer_kind

from .builders import build_request, build_rig, engine_config
from .test_preempted_engine import add_urgent, one_at_a_time, step_until_computed

RECIPES = (
    Recipe(),
    Recipe(window=8, sink_tokens=2),
    Recipe(window=8, sink_tokens=2, full_tail=5, full_decode=True, lookback_layers=(0,)),
)


def test_blocks_are_told_apart_by_what_their_layers_keep() -> None:
    rig = build_rig(config=engine_config(export_step_bytes=1))
    engine = rig.engine
    for number, recipe in enumerate(RECIPES):
        rig.add(build_request(f"{number}", 40 if number else 1100, recipe, continues=number == 0))
    seen = set()
    while engine.has_work:
        rig.step()
        usage = engine.usage()
        assert sum(usage.num_blocks.values()) == engine.config.num_blocks - 1
        assert min(usage.num_blocks.values()) >= 0
        held = dict.fromkeys(("full", "lookback", "window"), 0)
        for request in engine.scheduler.requests:
            for rule, table in zip(request.rules, request.block_tables, strict=False):
                held[layer_kind(rule)] += sum(block != 0 for block in table)
        assert {kind: usage.num_blocks[kind] for kind in held} == held  # type: ignore[index]
        seen |= {use for use, count in usage.num_blocks.items() if count}
    assert seen == {"full", "lookback", "window", "saving", "parked", "free"}
    usage = engine.usage()
    assert (usage.num_running, usage.num_waiting) == (0, 0)
    assert usage.num_blocks["parked"] == sum(request.num_held_blocks for request in engine.parked.requests) > 0


def test_what_waits_is_told_from_what_runs() -> None:
    rig = build_rig(config=engine_config(max_running=1))
    for number in range(3):
        rig.add(build_request(f"{number}", 20))
    assert (rig.engine.usage().num_running, rig.engine.usage().num_waiting) == (0, 3)
    rig.step()
    usage = rig.engine.usage()
    assert (usage.num_running, usage.num_waiting) == (1, 2)


def test_kinds_of_layers() -> None:
    assert layer_kind(LayerRule()) == "full"
    assert layer_kind(LayerRule(window=4)) == "window"
    assert layer_kind(LayerRule(window=4, full_tail=1)) == "lookback"
    assert layer_kind(LayerRule(window=4, full_decode=True)) == "lookback"


def test_states_that_made_room_are_counted() -> None:
    rig, clock = one_at_a_time()
    victim = rig.add(build_request("victim", 60))
    step_until_computed(rig, victim, 16)
    add_urgent(rig, clock, "urgent")
    assert rig.engine.usage().num_preemptions == 0
    rig.step()
    usage = rig.engine.usage()
    assert (usage.num_preemptions, usage.num_running, usage.num_waiting) == (1, 1, 1)
    assert usage.swapped_bytes > 0
    rig.run()
    assert (rig.engine.usage().num_preemptions, rig.engine.usage().swapped_bytes) == (1, 0)
