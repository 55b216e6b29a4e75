"""A simulated replica: every request ends once, runs repeat, and what is predicted of an idle one happens."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.sla_models import MODELS, engine_config
from benchmarks.sla_policies import Objectives, Policy, all_policies, measure_setup, requests_of
from benchmarks.sla_simulation import Machine, SimulatedService, VirtualClock
from services.cost import prefill_work
from services.gateway.sla import SLA_HEADER
from services.load.results import OK, REFUSED, Result
from services.load.trace import TraceRequest, TraceSpec, parse_names, parse_numbers
from swaa_runtime.visibility import Turn

NAME = "qwen3-4b"
MODEL = MODELS[NAME]
PROFILE = MODEL.profile
CATALOG = MODEL.catalog
PLANNER = Policy("planner")
SPEC = TraceSpec(
    rate_per_s=1.0,
    duration_s=40.0,
    prompt_tokens=parse_numbers("lengths", "500:0.5,16000:0.4,90000:0.1"),
    max_tokens=parse_numbers("max_tokens", "4-12"),
    sla_classes=parse_names("classes", "interactive,balanced,quality"),
)


def make_service(
    policy: Policy = PLANNER, bias: float = 1.0, noise: float = 0.0, seed: int = 0, interrupt_tokens: int = 2048
) -> SimulatedService:
    config = replace(engine_config(NAME, PROFILE, policy), interrupt_tokens=interrupt_tokens)
    return SimulatedService(CATALOG, MODEL.shape, config, PROFILE, Machine(PROFILE, bias, noise, seed))


def busy_trace(load: float = 2.0) -> list[TraceRequest]:
    """More than fits, for a while."""
    setup = measure_setup(PROFILE, CATALOG, SPEC)
    spec = replace(SPEC, rate_per_s=load * setup.capacity_per_s, duration_s=40 * setup.unit_ms / 1e3)
    return requests_of(spec, Objectives({"interactive": 2.0, "balanced": 4.0, "quality": 12.0}), setup)


def run(policy: Policy, trace: list[TraceRequest], noise: float = 0.0, seed: int = 0) -> list[Result]:
    service = make_service(policy, noise=noise, seed=seed)
    results = service.run(policy.asked(trace))
    service.engine.check_integrity()
    assert service.engine.manager.pool.num_used_blocks == 0
    return results


@pytest.mark.parametrize("policy", all_policies(["full"]), ids=lambda policy: policy.name)
def test_every_request_ends_once_and_leaves_nothing(policy: Policy) -> None:
    trace = busy_trace()
    results = run(policy, trace)
    assert [result.index for result in results] == list(range(len(trace)))
    for asked, result in zip(trace, results, strict=True):
        assert result.prompt_tokens == asked.prompt_tokens
        if result.status == OK:
            assert result.generated_tokens == asked.max_tokens
            assert 0 < result.ttft_ms <= result.total_ms
    assert Counter(result.status for result in results)[REFUSED] == 0 or policy.strict


def test_the_same_seed_gives_the_same_and_another_other_times() -> None:
    trace = busy_trace()
    first, again, other = (run(PLANNER, trace, noise=0.2, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert [result.ttft_ms for result in first] != [result.ttft_ms for result in other]


@pytest.mark.parametrize("num_tokens", [500, 8000, 24_000, 100_000])
@pytest.mark.parametrize("sla_class", ["interactive", "quality"])
def test_on_an_idle_replica_what_is_predicted_happens(num_tokens: int, sla_class: str) -> None:
    [result] = make_service().run([TraceRequest(5.0, num_tokens, 8, {SLA_HEADER: sla_class})])
    assert result.predicted_ttft_ms == pytest.approx(result.ttft_ms, rel=0.02)
    assert result.predicted_tpot_ms == pytest.approx(result.tpot_ms, rel=0.05)


def test_the_planner_learns_what_a_slower_machine_takes() -> None:
    trace = [TraceRequest(30_000.0 * index, 24_000, 8, {SLA_HEADER: "balanced"}) for index in range(20)]
    results = make_service(bias=1.5, noise=0.1).run(trace)
    assert results[0].ttft_ms == pytest.approx(1.5 * results[0].predicted_ttft_ms, rel=0.3)
    assert results[-1].predicted_ttft_ms == pytest.approx(results[-1].ttft_ms, rel=0.15)


@pytest.mark.parametrize("interrupt_tokens", [2048, 0])
def test_a_short_prompt_in_the_middle_of_a_long_step_waits_for_a_layer_or_for_all_of_it(interrupt_tokens: int) -> None:
    """Alone, 500 tokens take 12 ms; a step of a long prompt takes eight times as long."""
    alone = TraceRequest(0.0, 500, 1, {SLA_HEADER: "interactive"})
    long_one = TraceRequest(0.0, 64_000, 1, {SLA_HEADER: "quality"})
    [alone_result] = make_service().run([alone])
    service = make_service(interrupt_tokens=interrupt_tokens)
    _, behind = service.run([long_one, replace(alone, arrival_ms=10.0)])
    if interrupt_tokens:
        assert behind.ttft_ms < 1.5 * alone_result.ttft_ms
    else:
        assert behind.ttft_ms > 5 * alone_result.ttft_ms


def test_the_clock_lets_things_happen_at_their_times() -> None:
    clock = VirtualClock()
    seen: list[tuple[str, float]] = []
    clock.at(3.0, lambda: seen.append(("later", clock())))
    clock.at(1.0, lambda: clock.at(2.0, lambda: seen.append(("between", clock()))))
    clock.advance(2.5)
    assert (seen, clock(), clock.next_s) == ([("between", 2.0)], 2.5, 3.0)
    clock.advance(4.0)
    assert seen == [("between", 2.0), ("later", 3.0)]


# Prices that are no measurement of this machine are those that the README has times of.


def prefill_s(name: str, recipe: str, num_tokens: int) -> float:
    model = MODELS[name]
    work = prefill_work(model.catalog.recipes[recipe].rules, (Turn(0, num_tokens),), 0, num_tokens)
    return model.profile.prefill_ms(work) / 1e3


@pytest.mark.parametrize(
    ("recipe", "measured_s"),
    [("sliding", 1.93), ("quarter", 3.60), ("full", 9.12)],
)
def test_the_prices_of_an_h100_are_near_what_was_measured_there(recipe: str, measured_s: float) -> None:
    assert prefill_s(NAME, recipe, 131_072) == pytest.approx(measured_s, rel=0.04)


@pytest.mark.parametrize(
    ("recipe", "measured_s"),
    [
        ("full", (2.56, 7.33, 22.15)),
        ("wide-tail", (2.86, 5.78, 12.04)),
        ("sliding-tail", (2.28, 4.29, 8.54)),
        ("sliding", (2.20, 4.03, 8.13)),
    ],
)
def test_the_prices_of_a_cpu_are_near_what_was_measured_there(recipe: str, measured_s: tuple[float, ...]) -> None:
    for num_tokens, seconds in zip((2000, 4000, 8000), measured_s, strict=True):
        assert prefill_s("default", recipe, num_tokens) == pytest.approx(seconds, rel=0.12)
