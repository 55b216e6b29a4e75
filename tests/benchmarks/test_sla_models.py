"""What a replica's capacity is where many wait."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.sla_models import DATA, MODELS, PRICED, find_profile, load_profile, saturated
from benchmarks.sla_policies import Objectives, measure_setup, requests_of
from services.load.trace import TraceSpec, parse_names, parse_numbers

SPEC = TraceSpec(
    rate_per_s=1.0,
    duration_s=20.0,
    prompt_tokens=parse_numbers("lengths", "2000-4000"),
    max_tokens=parse_numbers("max_tokens", "8"),
    sla_classes=parse_names("classes", "interactive"),
)


def crowding(max_tokens: str, tpot: float) -> float:
    """Of the default model under the reference, by the prices of a Xeon."""
    catalog = MODELS["default"].catalog
    spec = replace(SPEC, max_tokens=parse_numbers("max_tokens", max_tokens))
    setup = measure_setup(load_profile(DATA / "cost_smollm2_xeon.json"), catalog, spec)
    requests = requests_of(spec, Objectives({"interactive": 2.0}, {"interactive": tpot}), setup)
    return saturated("default", catalog, setup, requests).crowding


def test_the_stricter_the_time_per_token_the_more_a_request_takes_where_many_wait() -> None:
    strict, usual, patient = (crowding("16", tpot) for tpot in (2.0, 4.0, 100.0))
    assert strict > 1.2 * usual > 1.2 * patient
    assert 1.0 < patient < 1.2, "steps end with prompts: somewhat more of them than each prompt needs alone"


def test_without_answers_no_time_per_token_matters() -> None:
    assert crowding("1", 2.0) == pytest.approx(crowding("1", 100.0))


def test_every_model_that_can_be_simulated_has_prices() -> None:
    assert PRICED
    for name in PRICED:
        assert MODELS[name].profile.max_step_tokens > 0


def test_the_profile_of_a_service_is_found_among_others(tmp_path: Path) -> None:
    wanted = load_profile(DATA / "cost_smollm2_xeon.json")
    outdated = wanted.to_mapping() | {"version": 0}
    other = wanted.to_mapping() | {"measured_at": "2026-01-01"}
    for number, mapping in enumerate((outdated, other, wanted.to_mapping(), outdated)):
        (tmp_path / f"cost-{number}.json").write_text(json.dumps(mapping), encoding="utf-8")
    assert find_profile(tmp_path, wanted.source) == wanted
    with pytest.raises(LookupError, match="no cost profile of 'elsewhere' in"):
        find_profile(tmp_path, "elsewhere")
