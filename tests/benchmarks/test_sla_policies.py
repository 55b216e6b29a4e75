"""Whom the planner is compared with, and how long a run may last."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.sla_policies import Objectives, Policy, Row, Setup, all_policies, gains, measure_setup, requests_of
from services.load.report import Group
from services.load.trace import TraceSpec, parse_names, parse_numbers
from tests.services.gateway.builders import COST, make_catalog


def row(policy: Policy, hit_rate: float, mean_quality: float, load: float = 1.2) -> Row:
    return Row(policy, load, Group(10, 10, 0, 0, (), (), hit_rate, hit_rate, hit_rate, mean_quality, 0.0, 0.0, 0.0))


FULL, FAST, PLANNER, FCFS = (
    Policy("fixed: full", recipe="full"),
    Policy("fixed: fast", recipe="fast"),
    Policy("planner"),
    Policy("fcfs: full", "fcfs", "full"),
)


def test_the_planner_is_compared_with_the_best_fixed_recipe_of_at_least_its_quality() -> None:
    rows = [row(FULL, 0.3, 1.0), row(FAST, 0.9, 0.5), row(FCFS, 0.8, 1.0), row(PLANNER, 0.7, 0.8)]
    gain = gains(rows)[1.2]
    assert gain["best_fixed"] == "full"  # the fast one is worse than the planner, and fcfs is no fixed recipe of ours
    assert gain["gain_points"] == pytest.approx(40)


def test_a_recipe_of_the_same_quality_counts_and_each_load_is_its_own() -> None:
    rows = [row(FULL, 0.3, 1.0), row(FAST, 0.6, 0.8), row(PLANNER, 0.5, 0.8), row(FULL, 1.0, 1.0, 0.5)]
    rows.append(row(PLANNER, 0.9, 1.0, 0.5))
    assert {load: gain["best_fixed"] for load, gain in gains(rows).items()} == {1.2: "fast", 0.5: "full"}
    assert gains(rows)[0.5]["gain_points"] == pytest.approx(-10)


def test_capacity_is_one_request_at_a_time_and_queues_count_against_the_budget() -> None:
    setup = Setup(COST, {"full": 2000.0, "fast": 500.0})
    assert setup.capacity_per_s == 0.5
    # At twice the capacity full attention needs as long again; a recipe of a quarter of the work keeps up.
    assert setup.window_s(90.0, [2.0], [FULL, FAST]) == pytest.approx(30.0)


def test_the_reference_is_the_best_recipe_and_of_equals_the_one_of_least_work() -> None:
    setup = Setup(COST, {"full": 2000.0, "as good": 1500.0, "fast": 500.0}, "as good", crowding=1.25)
    assert setup.unit_ms == 1500.0
    assert setup.capacity_per_s == pytest.approx(1 / (1.5 * 1.25))
    numbers, names = parse_numbers("lengths", "1000-4000"), parse_names("classes", "balanced")
    catalog, spec = make_catalog(), TraceSpec(1.0, 1.0, numbers, parse_numbers("max_tokens", "4"), names)
    assert measure_setup(COST, catalog, spec).reference == "full"
    quality = replace(catalog.quality, recall={**catalog.quality.recall, "tail": (1.0, 0.8)})
    assert measure_setup(COST, replace(catalog, quality=quality), spec).reference == "tail"


def test_requests_ask_in_multiples_of_what_the_reference_takes_and_for_no_more_than_is_named() -> None:
    numbers, names = parse_numbers("lengths", "1000-4000"), parse_names("classes", "interactive:0.5,quality:0.5")
    spec = TraceSpec(1.0, 40.0, numbers, parse_numbers("max_tokens", "4"), names)
    setup = Setup(COST, {"full": 2000.0}, token_ms=50.0, crowding=1.5)
    objectives = Objectives({"interactive": 2.0, "quality": 12.0}, {"interactive": 4.0}, {"quality": 0.9})
    asked = {request.headers["x-swaa-sla"]: request.headers for request in requests_of(spec, objectives, setup)}
    assert asked == {
        "interactive": {"x-swaa-sla": "interactive", "x-slo-ttft-ms": "4000.0", "x-slo-tpot-ms": "200.0"},
        "quality": {"x-swaa-sla": "quality", "x-slo-ttft-ms": "24000.0", "x-swaa-min-quality": "0.9"},
    }


def test_every_policy_says_what_it_adds_to_requests() -> None:
    headers = {policy.name: (policy.scheduling, policy.headers) for policy in all_policies(["full"])}
    assert headers == {
        "fixed: full": ("slack", {"x-swaa-recipe": "full"}),
        "planner": ("slack", {}),
        "planner strict": ("slack", {"x-swaa-strict": "true"}),
        "fcfs: full": ("fcfs", {"x-swaa-recipe": "full"}),
        "fcfs: planner": ("fcfs", {}),
    }
