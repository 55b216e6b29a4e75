"""Adapters: rows of one batch use different ones or none, and the merged model and peft say what is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from swaa_runtime.errors import InvalidRecipe, ModelNotSupported
from swaa_runtime.model.adapters import (
    WEIGHTS_FILE,
    Adapters,
    merge_adapter,
    read_adapter,
    weights_fingerprint,
)
from swaa_runtime.model.attention import ATTENTION_NAME
from swaa_runtime.model.loader import LoadedModel, wrap_model
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import Request
from tests.swaa_runtime.builders import (
    Rig,
    assert_equals_oracle,
    build_request,
    build_rig,
    build_transformer,
    next_turn,
    oracle_logits,
    random_tokens,
    tiny_config,
    write_adapter,
)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return {"one": write_adapter(tmp_path / "one", 1), "two": write_adapter(tmp_path / "two", 2, rank=2)}


@pytest.fixture
def adapted(folders: dict[str, Path]) -> LoadedModel:
    return wrap_model(build_transformer(tiny_config("llama"), ATTENTION_NAME), "adapted", folders)


def merged_model(folder: Path | None) -> LoadedModel:
    model = build_transformer(tiny_config("llama"), ATTENTION_NAME)
    if folder is not None:
        merge_adapter(model, folder)
    return wrap_model(model, "merged")


def recipe_of(loaded: LoadedModel, name: str | None) -> Recipe:
    recipe = Recipe(window=8, sink_tokens=2, full_decode=True, full_tail=3, adapter=name)
    return loaded.adapters.pin(recipe)


def assert_is(rig: Rig, twin: LoadedModel, request: Request) -> None:
    assert_equals_oracle(rig, twin, request)


def test_a_mixed_batch_gives_each_request_its_own_adapter(adapted: LoadedModel, folders: dict[str, Path]) -> None:
    rig = build_rig(adapted)
    names = ["one", None, "two", "one", None]
    requests = [
        rig.add(build_request(f"r{at}", random_tokens(20 + at, at), recipe_of(adapted, name)))
        for at, name in enumerate(names)
    ]
    rig.run()
    for request, name in zip(requests, names, strict=True):
        assert_is(rig, merged_model(None if name is None else folders[name]), request)
    plain, other = (oracle_logits(merged_model(path), requests[0]) for path in (None, folders["one"]))
    assert (plain - other).abs().max() > 0.1, "an adapter that changes nothing would prove nothing"


def test_rows_without_an_adapter_are_the_bare_models_bit_for_bit(adapted: LoadedModel) -> None:
    bare = build_rig(merged_model(None))
    mixed = build_rig(adapted)
    for rig in (bare, mixed):
        rig.add(build_request("r", 30, Recipe()))
        rig.run()
    first, second = (rig.runner.recorded(rig.requests["r"]) for rig in (bare, mixed))
    assert torch.equal(first, second)


def test_a_prompt_within_the_window_runs_without(adapted: LoadedModel, folders: dict[str, Path]) -> None:
    rig = build_rig(adapted)
    short = rig.add(build_request("short", 8, recipe_of(adapted, "one")))
    longer = rig.add(build_request("longer", 9, recipe_of(adapted, "one")))
    rig.run()
    assert_is(rig, merged_model(None), short)
    assert_is(rig, merged_model(folders["one"]), longer)


def test_a_session_turns_its_adapter_on_once_and_recomputing_replays_it(adapted: LoadedModel) -> None:
    """Turn 1 fits the window, turn 2 does not: tokens of turn 1 stay as they were, on one way as on the other."""
    rig = build_rig(adapted)
    recipe = recipe_of(adapted, "one")
    first = rig.add(build_request("first", 4, recipe, continues=True))
    rig.run()
    second = next_turn("second", first, random_tokens(5, 7))
    assert rig.resume(second, "first"), "the state is still in the pool"
    rig.run()
    again = build_rig(adapted)
    recomputed = again.add(next_turn("second", first, random_tokens(5, 7)))
    again.run()
    assert recomputed.token_ids == second.token_ids
    got = rig.runner.recorded(second)
    want = again.runner.recorded(recomputed)[-len(got) :]
    assert (got - want).abs().max().item() <= 1e-5
    bare = build_rig(merged_model(None))
    without = bare.add(build_request("first", 4, Recipe(**(recipe.to_mapping() | {"adapter": None}))))
    bare.run()
    assert torch.equal(rig.runner.recorded(first), bare.runner.recorded(without))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21 asks transformers 5.24
def test_pefts_own_forward_gives_the_same_logits(folders: dict[str, Path], adapted: LoadedModel) -> None:
    peft = pytest.importorskip("peft")
    reference = peft.PeftModel.from_pretrained(build_transformer(tiny_config("llama"), "eager"), folders["one"])
    rig = build_rig(adapted)
    request = rig.add(build_request("r", 20, Recipe(adapter=adapted.adapters.ids["one"])))
    rig.run()
    with torch.no_grad():
        want = reference(input_ids=torch.tensor([request.token_ids[:-1]])).logits[0]
    assert (rig.runner.recorded(request) - want).abs().max().item() <= 1e-5


def test_recipes_name_content_and_what_is_not_loaded_is_refused(
    adapted: LoadedModel, folders: dict[str, Path], tmp_path: Path
) -> None:
    ids = adapted.adapters.ids
    pinned = adapted.adapters.pin(Recipe(window=8, adapter="one"))
    assert pinned.adapter == ids["one"]
    assert adapted.adapters.pin(pinned) == pinned
    other = read_adapter("one", write_adapter(tmp_path / "other", 9), merged_model(None).model)
    assert other.adapter_id.startswith("one@")
    assert other.adapter_id != ids["one"], "another content is another adapter, also under the same name"
    assert Adapters().pin(Recipe(window=8)) == Recipe(window=8)
    with pytest.raises(InvalidRecipe, match=r"adapter is 'three'.*one@"):
        Recipe(window=8, adapter="three").pinned(ids)
    with pytest.raises(InvalidRecipe, match="is not loaded"):
        build_rig(adapted).add(build_request("r", 9, Recipe(window=8, adapter="one")))


def test_weights_fingerprint_is_the_models_in_any_dtype_and_of_no_other(adapted: LoadedModel) -> None:
    model = build_transformer(tiny_config("llama"), ATTENTION_NAME)
    name = weights_fingerprint(model)
    assert weights_fingerprint(adapted.model) == name
    assert weights_fingerprint(build_transformer(tiny_config("llama"), ATTENTION_NAME).bfloat16()) == name
    assert weights_fingerprint(build_transformer(tiny_config("llama"), ATTENTION_NAME, seed=1)) != name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LOHA"}, "'LOHA'"),
        ({"use_dora": True}, "use_dora True"),
        ({"bias": "all"}, "bias 'all'"),
        ({"r": 5}, r"lora_A.weight of .* is \(4, 32\), must be \(5, 32\)"),
        ({"r": 0}, "r 0"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
    ],
)
def test_settings_that_would_change_the_result_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = write_adapter(tmp_path / "bad", 1, **change)
    with pytest.raises(ModelNotSupported, match=message):
        read_adapter("bad", folder, merged_model(None).model)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = merged_model(None).model
    with pytest.raises(ModelNotSupported, match="trained on a model of fingerprint abc"):
        read_adapter("a", write_adapter(tmp_path / "a", 1, base="abc"), model)
    assert read_adapter("b", write_adapter(tmp_path / "b", 1, base=weights_fingerprint(model)), model).updates
    tensors = load_file(tmp_path / "b" / WEIGHTS_FILE)
    save_file({"base_model.model.lm_head.embed": torch.zeros(2)}, tmp_path / "b" / WEIGHTS_FILE)
    with pytest.raises(ModelNotSupported, match="no LoRA weight"):
        read_adapter("b", tmp_path / "b", model)
    renamed = {key.replace("layers.0", "layers.7"): tensor for key, tensor in tensors.items()}
    save_file(renamed, tmp_path / "b" / WEIGHTS_FILE)
    with pytest.raises(ModelNotSupported, match=r"layers\.7"):
        read_adapter("b", tmp_path / "b", model)
    (tmp_path / "b" / WEIGHTS_FILE).write_bytes(b"\x80\x04pickle")
    with pytest.raises(ModelNotSupported, match="cannot be read"):
        read_adapter("b", tmp_path / "b", model)
    with pytest.raises(ModelNotSupported, match="nowhere has no weights"):
        read_adapter("c", tmp_path / "nowhere", model)
