"""Newcomers run between the layers of long steps: whoever comes when, all get what they get without that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swaa_runtime.batch import Batch, ScheduledChunk
from swaa_runtime.config import EngineConfig
from swaa_runtime.errors import InvalidRequest
from swaa_runtime.interruption import LongStep, newcomers, num_interruptions
from swaa_runtime.load import EngineLoad
from swaa_runtime.model.attention import ATTENTION_NAME
from swaa_runtime.model.loader import LoadedModel, wrap_model
from swaa_runtime.outputs import Output, TokenOutput
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import Request, SamplingParams, Status
from swaa_runtime.step_cost import UnknownCost
from tests.swaa_runtime.builders import (
    FakeClock,
    LinearCost,
    RecordingRunner,
    Rig,
    assert_equals_oracle,
    build_request,
    build_rig,
    build_transformer,
    engine_config,
    next_turn,
    random_tokens,
    tiny_config,
    tiny_model,
    write_adapter,
)
from tests.swaa_runtime.strategies import recipes

SLIDING = Recipe(window=12, sink_tokens=2)
NUM_LAYERS = 3
ONE = SamplingParams(max_tokens=1)

interruptible = partial(engine_config, max_step_tokens=64, interrupt_tokens=16, max_waiting=50)


@dataclass(slots=True)
class Arrivals:
    """Requests that come at boundaries: before long steps and between their layers, counted over all steps.

    Attributes:
        came: at which boundary each came; first_tokens: at which each had its first token in a step of newcomers.
        num_nested: interruptions of each long step.
    """

    rig: Rig
    coming: list[tuple[int, Request]]
    boundary: int = 0
    came: dict[str, int] = field(default_factory=dict)
    first_tokens: dict[str, int] = field(default_factory=dict)
    num_nested: list[int] = field(default_factory=list)

    def between_layers(self) -> None:
        engine = self.rig.engine
        step = engine._in_flight
        assert step is not None
        while self.coming and self.coming[0][0] <= self.boundary:
            self.add(self.coming.pop(0)[1])
        assert self.rig.runner.adapters.active.groups == (), "the step's adapters are not those of others"
        in_flight = [request for name, request in self.rig.requests.items() if name in step.request_ids]
        before = [(r.num_computed_tokens, [list(table) for table in r.block_tables]) for r in in_flight]
        outputs = engine.interrupt()
        engine.check_integrity()
        now = [(r.num_computed_tokens, [list(table) for table in r.block_tables]) for r in in_flight]
        assert before == now, "whoever runs stays as it is"
        self.rig.outputs += outputs
        if outputs:
            self.num_nested[-1] += 1
        for output in outputs:
            assert output.request_id not in step.request_ids
            if isinstance(output, TokenOutput):
                assert output.request_id not in self.first_tokens
                self.first_tokens[output.request_id] = self.boundary
        self.boundary += 1

    def add(self, request: Request) -> None:
        self.came[request.request_id] = self.boundary
        self.rig.add(request)

    def run(self) -> None:
        """Until all have come and ended."""
        while self.rig.engine.has_work or self.coming:
            self.num_nested.append(0)
            if not self.rig.engine.has_work:
                self.add(self.coming.pop(0)[1])
            self.rig.outputs += self.rig.engine.step(self.between_layers)
            self.rig.engine.check_integrity()


def run_arriving(rig: Rig, coming: Sequence[tuple[int, Request]]) -> Arrivals:
    arrivals = Arrivals(rig, sorted(coming, key=lambda arrival: arrival[0]))
    arrivals.run()
    return arrivals


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder: Path = tmp_path_factory.mktemp("adapters")
    folders = {"one": write_adapter(folder / "one", 1), "two": write_adapter(folder / "two", 2, rank=2)}
    return wrap_model(build_transformer(tiny_config("llama"), ATTENTION_NAME), "adapted", folders)


@dataclass(frozen=True, slots=True)
class Plan:
    """A request, and the boundary that it comes at."""

    boundary: int
    prompt: int
    recipe: Recipe
    max_tokens: int
    temperature: float
    continues: bool
    is_urgent: bool

    def request(self, index: int) -> Request:
        params = SamplingParams(max_tokens=self.max_tokens, temperature=self.temperature, seed=index)
        tokens = random_tokens(self.prompt, seed=index)
        return build_request(
            f"r{index}",
            tokens,
            self.recipe,
            sampling=params,
            continues=self.continues,
            ttft_due_s=FakeClock().now_s + self.prompt / 1e3 + 0.001 if self.is_urgent else None,
        )


def plans(adapters: Sequence[str]) -> st.SearchStrategy[Plan]:
    with_adapter = st.builds(
        lambda recipe, adapter: replace(recipe, adapter=adapter),
        recipes(NUM_LAYERS),
        st.sampled_from([None, None, *adapters]),
    )
    return st.builds(
        Plan,
        boundary=st.sampled_from([0, 0, 0, *range(1, 12)]),
        prompt=st.one_of(st.integers(1, 20), st.integers(1, 20), st.sampled_from([64, 65, 130, 200])),
        recipe=with_adapter,
        max_tokens=st.integers(1, 4),
        temperature=st.sampled_from([0.0, 1.5]),
        continues=st.booleans(),
        is_urgent=st.booleans(),
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whoever_comes_at_whatever_layer_everybody_gets_what_nobody_interrupts(
    adapted: LoadedModel, data: st.DataObject
) -> None:
    """Tokens and logits are those of an engine whose steps are not interrupted.

    Of few blocks some wait, or are given up for others.
    """
    chosen = data.draw(st.lists(plans(list(adapted.adapters.ids.values())), min_size=1, max_size=7), label="plans")
    config = interruptible(
        block_size_tokens=data.draw(st.sampled_from([4, 8, 16]), label="block"),
        interrupt_tokens=data.draw(st.sampled_from([4, 16, 30, 64]), label="interrupt"),
        max_running=data.draw(st.sampled_from([2, 8]), label="running"),
        num_blocks=data.draw(st.sampled_from([3 * 60, 2000]), label="blocks"),
    )
    rig, plain = build_rig(adapted, config, clock=FakeClock()), build_rig(adapted, config)
    rig.engine.set_cost(LinearCost())
    arrivals = run_arriving(rig, [(plan.boundary, plan.request(index)) for index, plan in enumerate(chosen)])
    for index, plan in enumerate(chosen):
        plain.add(plan.request(index))
    plain.run()
    for name, request in rig.requests.items():
        assert request.token_ids == plain.requests[name].token_ids
        difference = rig.runner.recorded(request) - plain.runner.recorded(plain.requests[name])
        assert difference.abs().max().item() <= 1e-5
        assert len(rig.tokens(name)) == rig.finished(name).num_computed_tokens - request.prompt_stop + 1
    most = config.max_step_tokens // config.interrupt_tokens
    assert all(num_nested <= most for num_nested in arrivals.num_nested)
    parked = sum(request.num_held_blocks for request in rig.engine.parked.requests)
    assert rig.engine.manager.pool.num_used_blocks == rig.engine.manager.num_reserved_blocks == parked


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_both_kinds_of_model_code_can_be_interrupted(family: str) -> None:
    loaded = tiny_model(family)
    rig = build_rig(loaded, interruptible())
    arrivals = run_arriving(
        rig, [(0, build_request("long", 150, SLIDING)), *((at, build_request(f"r{at}", 5 + at)) for at in range(1, 6))]
    )
    assert len(arrivals.first_tokens) == 5
    for request in rig.requests.values():
        assert_equals_oracle(rig, loaded, request)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_newcomer_has_its_first_token_before_the_next_layer(layer: int) -> None:
    """Wherever in the long step it comes: before it, or after any layer but the last."""
    rig = build_rig(config=interruptible())
    long = rig.add(build_request("long", 200, SLIDING))
    rig.step()
    arrivals = Arrivals(rig, [(layer, build_request("r", 10))], num_nested=[0])
    rig.engine.step(arrivals.between_layers)
    assert arrivals.first_tokens == {"r": layer}
    assert arrivals.boundary == NUM_LAYERS
    assert long.num_computed_tokens == 2 * 64
    assert len(rig.tokens("r")) == 1, "its next one comes with the next step"
    rig.step()
    assert len(rig.tokens("r")) == 2


def test_a_newcomer_that_is_there_already_is_run_before_a_long_step_and_not_in_it() -> None:
    rig = build_rig(config=interruptible())
    long = rig.add(build_request("long", 200, SLIDING))
    rig.add(build_request("r", 10))
    arrivals = Arrivals(rig, [], num_nested=[0])
    rig.engine.step(arrivals.between_layers)
    assert arrivals.first_tokens == {"r": 0}
    assert long.num_computed_tokens == 64


def test_newcomers_that_do_not_fit_one_interruption_run_in_the_long_step_as_ever() -> None:
    rig = build_rig(config=interruptible())
    first, second, third = (rig.add(build_request(f"r{at}", 10)) for at in range(3))
    rig.add(build_request("long", 200, SLIDING, priority=-1))
    arrivals = Arrivals(rig, [], num_nested=[0])
    rig.outputs += rig.engine.step(arrivals.between_layers)
    assert arrivals.first_tokens == {"r0": 0}
    assert [len(rig.tokens(r.request_id)) for r in (first, second, third)] == [1, 1, 1]


def test_a_short_step_is_for_all_and_nobody_interrupts_it() -> None:
    rig = build_rig(config=interruptible())
    rig.add(build_request("a", 9))
    rig.add(build_request("b", 6))

    def never() -> None:
        raise AssertionError("such a step is not interrupted")

    rig.outputs += rig.engine.step(never)
    assert rig.tokens("a")
    assert rig.tokens("b")


@pytest.mark.parametrize(
    ("config", "tpot_ms", "is_long"),
    [
        (interruptible(), None, True),
        (interruptible(), 1e6, False),
        (interruptible(policy="fcfs"), None, False),
        (interruptible(interrupt_tokens=0), None, False),
        (interruptible(interrupt_tokens=65), None, False),
    ],
)
def test_which_steps_are_interrupted(config: EngineConfig, tpot_ms: float | None, is_long: bool) -> None:
    """Not those with a next token that is due, nor under fcfs, nor if it is turned off."""
    rig = build_rig(config=config)
    rig.add(build_request("chat", 5, sampling=SamplingParams(max_tokens=20), tpot_ms=tpot_ms))
    rig.step()
    rig.add(build_request("long", 200, SLIDING))
    called: list[int] = []

    def between_layers() -> None:
        called.append(1)
        rig.engine.interrupt()

    rig.engine.step(between_layers)
    assert len(called) == (NUM_LAYERS if is_long else 0)
    rig.run()


def test_a_runner_that_cannot_be_interrupted_is_not() -> None:
    rig = build_rig(config=interruptible())
    rig.runner.is_interruptible = False
    rig.add(build_request("long", 200, SLIDING))
    newcomer = rig.add(build_request("r", 10))
    rig.engine.step(lambda: pytest.fail("it is not interruptible"))
    assert newcomer.num_computed_tokens > 0, "it has its share of the step"


def test_out_of_long_steps_nobody_interrupts() -> None:
    rig = build_rig(config=interruptible())
    rig.add(build_request("r", 10))
    assert rig.engine.interrupt() == []
    assert rig.requests["r"].status is Status.WAITING


# Bounds.


def test_a_stream_of_newcomers_takes_no_more_than_the_long_step_itself() -> None:
    """Two at every boundary, for ever: a step of 64 tokens lets 4 x 16 in, and the long prompt is done in time."""
    rig = build_rig(config=interruptible(max_running=64))
    long = rig.add(build_request("long", 640, SLIDING, sampling=ONE))
    count = 0

    def between_layers() -> None:
        nonlocal count
        for _ in range(2):
            if len(rig.engine.scheduler.waiting) < 40:
                rig.add(build_request(f"r{count}", random_tokens(15, seed=count), sampling=ONE))
                count += 1
        rig.outputs += rig.engine.interrupt()

    steps = 0
    while not long.first_token_s:
        before = sum(r.num_computed_tokens for r in rig.requests.values() if r is not long)
        computed = long.num_computed_tokens
        rig.outputs += rig.engine.step(between_layers)
        steps += 1
        others = sum(r.num_computed_tokens for r in rig.requests.values() if r is not long) - before
        assert others <= 64 + 64
        assert long.num_computed_tokens > computed
    assert steps <= 40
    rig.run()


def test_who_was_left_out_of_a_long_step_is_the_first_to_interrupt_it_however_urgent_others_are() -> None:
    rig = build_rig(config=interruptible())
    rig.add(build_request("long", 200, SLIDING))
    rig.add(build_request("patient", 10, priority=-5))
    urgent = [(0, build_request(f"r{at}", 16, priority=5)) for at in range(6)]
    arrivals = Arrivals(rig, urgent, num_nested=[0])
    rig.engine.step(arrivals.between_layers)
    assert arrivals.first_tokens == {"patient": 0, "r0": 1, "r1": 2}
    rig.run()


def test_a_long_step_is_interrupted_once_for_each_so_many_of_its_tokens() -> None:
    loaded = tiny_model(num_layers=6)
    rig = build_rig(loaded, interruptible(interrupt_tokens=21))
    rig.add(build_request("long", 64, SLIDING, 6, sampling=ONE))
    coming = [(at, build_request(f"r{at}", 3, num_layers=6)) for at in range(6)]
    arrivals = Arrivals(rig, coming, num_nested=[0])
    rig.outputs += rig.engine.step(arrivals.between_layers)
    assert arrivals.first_tokens == {"r0": 0, "r1": 1, "r2": 2}
    assert rig.tokens("long")
    rig.run()
    assert all(rig.tokens(f"r{at}") for at in range(6))


@pytest.mark.parametrize("wait", ["paused", "restoring", "checkpoint", "large"])
def test_who_is_no_newcomer(wait: str) -> None:
    """Its reader is slow; its state is on its way in; its prompt is saved before its end; it is too large."""
    rig = build_rig(config=interruptible(block_size_tokens=4))
    first = rig.add(build_request("past", 40, SLIDING, continues=True))
    rig.run()
    state = rig.state("past")
    rig.add(build_request("long", 200, SLIDING))
    rig.step()
    others = {
        "paused": lambda: rig.add(build_request("r", 5)),
        "restoring": lambda: rig.add(next_turn("r", first, random_tokens(3)), state, place=False),
        "checkpoint": lambda: rig.add(build_request("r", 12, continues=True, checkpoint_tokens=8)),
        "large": lambda: rig.add(build_request("r", 17)),
    }

    def between_layers() -> None:
        if "r" not in rig.requests:
            others[wait]()
            rig.engine.set_paused("r", wait == "paused")
        assert rig.engine.interrupt() == []

    rig.outputs += rig.engine.step(between_layers)
    rig.engine.set_paused("r", False)
    if wait == "restoring":
        rig.engine.place("r", state.slices)
    rig.run()
    assert rig.tokens("r")


# Memory.


def test_a_newcomer_takes_free_memory_and_that_of_parked_states_but_nobodys() -> None:
    rig = build_rig(config=interruptible(num_blocks=1 + 3 * (13 + 3), max_step_tokens=48))
    rig.add(build_request("parked", 14, continues=True, sampling=ONE))
    rig.run()
    rig.add(build_request("long", 100, sampling=SamplingParams(max_tokens=5)))
    rig.step()
    assert "parked" in rig.engine.parked
    arrivals = Arrivals(rig, [(0, build_request("r", 10)), (1, build_request("s", 10))], num_nested=[0])
    rig.engine.step(arrivals.between_layers)
    assert arrivals.first_tokens == {"r": 0}
    assert "parked" not in rig.engine.parked
    assert rig.requests["s"].status is Status.WAITING
    rig.run()
    for name in ("long", "r", "s"):
        assert_equals_oracle(rig, tiny_model(), rig.requests[name])


def test_a_next_turn_goes_on_from_its_parked_state_in_the_midst_of_a_step() -> None:
    rig = build_rig(config=interruptible())
    first = rig.add(build_request("one", 30, SLIDING, continues=True))
    rig.run()
    rig.add(build_request("long", 200, SLIDING))
    later = next_turn("two", first, random_tokens(5))
    outputs: list[Output] = []

    def between_layers() -> None:
        if "two" not in rig.requests:
            assert rig.resume(later, "one")
        outputs.extend(rig.engine.interrupt())

    rig.engine.step(between_layers)
    assert [type(output) for output in outputs][-1] is TokenOutput
    rig.run()
    assert_equals_oracle(rig, tiny_model(), later)


def test_a_newcomer_that_ends_at_once_has_gone_before_the_step_goes_on() -> None:
    rig = build_rig(config=interruptible())
    rig.add(build_request("long", 200, SLIDING))
    arrivals = Arrivals(rig, [(1, build_request("r", 10, sampling=ONE))], num_nested=[0])
    rig.engine.step(arrivals.between_layers)
    assert rig.finished("r")
    assert rig.requests["r"].block_tables == []
    rig.run()


def test_a_step_that_fails_can_be_followed_by_another() -> None:
    rig = build_rig(config=interruptible())
    rig.add(build_request("long", 200, SLIDING))

    def fail() -> None:
        raise RuntimeError("a bit fell over")

    with pytest.raises(RuntimeError, match="fell over"):
        rig.engine.step(fail)
    assert rig.engine.interrupt() == []
    rig.run()


# What is told of it.


class SlowRunner(RecordingRunner):
    """Every forward takes so much longer on a clock of its own as it has tokens."""

    clock = FakeClock()

    def forward(
        self, batch: Batch, rows: torch.Tensor | None = None, between_layers: Callable[[], None] | None = None
    ) -> torch.Tensor:
        self.clock.now_s += len(batch.token_ids) / 1e3
        return super().forward(batch, rows, between_layers)

    def timer(self) -> ClockTimer:
        return ClockTimer(self.clock)


@dataclass(slots=True)
class ClockTimer:
    """A timer by a fake clock."""

    clock: FakeClock
    start_s: float = field(init=False)
    stop_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.start_s = self.stop_s = self.clock.now_s

    def stop(self) -> None:
        self.stop_s = self.clock.now_s

    def is_done(self) -> bool:
        return True

    def elapsed_ms(self) -> float:
        return (self.stop_s - self.start_s) * 1e3


class ObservingCost(UnknownCost):
    """Keeps whom each step ran, with how many tokens, and how long it took."""

    def __init__(self) -> None:
        self.steps: list[tuple[dict[str, int], float]] = []

    def observe(self, chunks: Sequence[ScheduledChunk], took_ms: float) -> None:
        self.steps.append(({chunk.request.request_id: chunk.num_tokens for chunk in chunks}, round(took_ms, 6)))


def test_a_long_steps_time_is_without_those_who_interrupted_it() -> None:
    rig, cost = build_rig(config=interruptible(), make_runner=SlowRunner), ObservingCost()
    rig.engine.set_cost(cost)
    rig.add(build_request("long", 128, SLIDING, sampling=ONE))
    arrivals = Arrivals(rig, [(0, build_request("a", 10)), (2, build_request("b", 7))], num_nested=[0])
    rig.engine.step(arrivals.between_layers)
    assert cost.steps == [({"a": 10}, 10.0), ({"b": 7}, 7.0), ({"long": 64}, 64.0)]


def test_the_load_in_the_midst_of_a_step_is_that_of_its_beginning() -> None:
    clock = FakeClock()
    rig = build_rig(config=interruptible(), clock=clock)
    rig.add(build_request("long", 200, SLIDING))
    began_s = clock.now_s
    loads: list[EngineLoad] = []

    def between_layers() -> None:
        clock.now_s += 1.0
        if len(loads) == 2:
            rig.add(build_request("r", 5))
        loads.append(rig.engine.load)
        rig.engine.interrupt()
        loads.append(rig.engine.load)

    rig.engine.step(between_layers)
    assert {load.taken_s for load in loads} == {began_s}
    assert [turn.request_id for turn in loads[2].prefills] == ["long", "r"]
    assert [turn.request_id for turn in loads[3].decodes] == ["r"]
    assert rig.engine.load.taken_s == clock.now_s
    rig.run()


# The rules.


def test_newcomers_are_as_many_as_fit_in_order() -> None:
    requests = [build_request(f"r{length}", length) for length in (9, 30, 12, 7, 1)]
    assert [request.request_id for request in newcomers(requests, 20)] == ["r9", "r7", "r1"]
    assert newcomers(requests, 0) == []


def test_a_step_may_be_interrupted_as_often_as_newcomers_fit_into_it() -> None:
    def often(num_tokens: int, interrupt_tokens: int) -> int:
        return num_interruptions([ScheduledChunk(build_request("r", 100), num_tokens)], interrupt_tokens)

    assert [often(tokens, 20) for tokens in (1, 19, 20, 39, 40, 100)] == [0, 0, 1, 1, 2, 5]
    assert often(100, 0) == 0
    assert num_interruptions([], 20) == 0


def test_a_long_step_counts_its_interruptions() -> None:
    clock = FakeClock()
    step = LongStep(frozenset({"r"}), 2, clock(), ClockTimer(clock))
    clock.now_s += 3.0
    inner = ClockTimer(clock)
    clock.now_s += 5.0
    inner.stop()
    step.interrupted(inner)
    step.stop()
    assert step.is_done()
    assert step.num_left == 1
    assert step.elapsed_ms() == pytest.approx(3000.0)


def test_a_config_refuses_fewer_than_no_tokens() -> None:
    with pytest.raises(InvalidRequest, match="interrupt_tokens is -1: must be at least 0"):
        EngineConfig(num_blocks=9, max_model_tokens=9, interrupt_tokens=-1)
