from __future__ import annotations

from typing import Any

import pytest

from swaa_runtime.config import EngineConfig
from swaa_runtime.errors import InvalidRecipe, InvalidRequest
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import SamplingParams, new_request
from swaa_runtime.visibility import Turn
from tests.swaa_runtime.builders import build_request


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", 100.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("seed", -1),
        ("seed", 2**63),
        ("stop", ("a",) * 17),
        ("stop", ("a", "")),
        ("logprobs", -1),
        ("logprobs", 21),
    ],
)
def test_sampling_out_of_bounds_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=field) as caught:
        SamplingParams(**{field: value})
    assert caught.value.field == field


def test_the_bounds_themselves_are_allowed() -> None:
    SamplingParams(max_tokens=1, temperature=100.0, top_p=1.0, min_p=1.0, seed=0, stop=("a",) * 16, logprobs=20)
    SamplingParams(temperature=0.0, min_p=0.0, seed=2**63 - 1, logprobs=0)


def test_a_value_too_long_to_show_is_cut() -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(stop=("x" * 500,) * 17)
    assert len(str(caught.value)) < 150


def test_a_first_turn() -> None:
    request = build_request(prompt=[5, 6, 7], sampling=SamplingParams(max_tokens=4))
    assert request.turns == (Turn(0, 3),)
    assert (request.prompt_stop, request.num_generated_tokens, request.num_remaining_tokens) == (3, 0, 3)
    assert request.max_total_tokens == 6, "the last generated token is never computed"


def test_a_later_turn_goes_on_from_its_history() -> None:
    history = (Turn(0, 2, 5),)
    request = build_request(prompt=[8, 9], history_token_ids=[1, 2, 3, 4, 5], history_turns=history)
    assert request.token_ids == [1, 2, 3, 4, 5, 8, 9]
    assert request.turns == (Turn(0, 2, 5), Turn(5, 7))
    assert request.prompt_stop == 7


@pytest.mark.parametrize(
    ("history", "turns"),
    [([1, 2], ()), ([], (Turn(0, 1, 2),)), ([1, 2, 3], (Turn(0, 1, 2),)), ([1, 2], (Turn(0, 1, None),))],
)
def test_turns_must_cover_the_history(history: list[int], turns: tuple[Turn, ...]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        build_request(prompt=[1], history_token_ids=history, history_turns=turns)
    assert caught.value.field == "turns"


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        build_request(prompt=[])
    assert caught.value.field == "prompt"


def test_a_recipe_that_the_model_cannot_follow_is_refused() -> None:
    with pytest.raises(InvalidRecipe):
        new_request("r", [1], Recipe(window=4, full_layers=(3,)), 3, SamplingParams())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"block_size_tokens": 0}, "block_size_tokens"),
        ({"max_step_tokens": 0}, "max_step_tokens"),
        ({"max_running": 0}, "max_running"),
        ({"max_model_tokens": 0}, "max_model_tokens"),
        ({"num_blocks": 1}, "num_blocks"),
        ({"max_step_tokens": 7, "max_running": 8}, "max_step_tokens"),
        ({"attention_backend": "flash"}, "attention_backend"),
        ({"attention_backend": "triton", "dense_attention": "fast"}, "dense_attention"),
        ({"dense_attention": "flash"}, "dense_attention"),
        ({"attention_backend": "triton", "kv_dtype": "int4"}, "kv_dtype"),
        ({"kv_dtype": "int8"}, "kv_dtype"),
    ],
)
def test_an_engine_configuration_out_of_bounds_is_refused_by_name(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        EngineConfig(**({"num_blocks": 10, "max_model_tokens": 100} | change))
    assert caught.value.field == field
