"""What a replica's capacity is where many wait."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.sla_models import CATALOGS, DATA, MODELS, PRICED, load_profile, saturated
from benchmarks.sla_policies import Objectives, measure_setup, requests_of
from services.gateway.catalog_file import ServedModel, load_catalog
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
    model = MODELS["default"]
    catalog = load_catalog(CATALOGS / model.catalog, ServedModel(model.shape.num_layers))[0]
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
        assert load_profile(DATA / MODELS[name].profile).max_step_tokens > 0
