"""The commands from end to end on a tiny random model: distil, train, merge, serve; choose layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.workload import make_tiny_model
from services.quality.batched import BatchGenerator, DenseKernel
from services.quality.distill import answer_all, answer_batched, to_example
from services.quality.examples import Example, read_examples
from services.quality.practice import Practice
from services.quality.tasks.sample import Sample
from services.quality.tune import main
from swaa_runtime.errors import InvalidRequest
from swaa_runtime.model.loader import load_model
from swaa_runtime.recipe import Recipe
from swaa_runtime.visibility import Turn
from tests.services.quality.builders import LetterTokenizer, example
from tests.swaa_runtime.builders import build_rig, random_tokens, tiny_model

RECIPE = {"window": 64, "sink_tokens": 4, "full_decode": True, "full_tail": 16}
SIZES = ["--lengths", "150", "--tasks", "single"]


class EndingTokenizer(LetterTokenizer):
    eos_token_id = 7

    def __call__(self, text: str | list[str], **_: Any) -> dict[str, Any]:
        return {"input_ids": [1, 2]}


def quiet(done: int, total: int) -> None:
    assert 1 <= done <= total


def practice(length: int, seed: int = 0) -> Practice:
    return Practice("any", Sample(tuple(random_tokens(length, seed)), ("Q",), 6), "right")


def test_labels_are_spans_and_spans_are_turns() -> None:
    part = Example.from_labels([9, 8, 7, 6, 5, 4], [False, True, True, False, True, False])
    assert part.answer_spans == ((1, 3), (4, 5))
    assert part.turns == (Turn(0, 1, 3), Turn(3, 4, 5), Turn(5, 6))
    assert part.num_answer_tokens == 3
    for labels in ([True, True], [False, False]):
        with pytest.raises(InvalidRequest, match="answer"):
            Example.from_labels([1, 2], labels)
    assert example(4, 2, 3).turns == (Turn(0, 4, 6), Turn(6, 9))


def test_a_file_that_is_no_examples_is_named_by_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"token_ids": [1, 2], "answers": [[1, 2]], "task": ""}\n{"token_ids": [1]}\n', encoding="utf-8")
    with pytest.raises(InvalidRequest, match=r"bad\.jsonl:2"):
        read_examples(file)


def test_answers_in_batches_are_the_engines() -> None:
    loaded, tokenizer = tiny_model(), EndingTokenizer()
    practices = [practice(length, seed) for seed, length in enumerate((20, 33, 7, 21, 20))]
    rig = build_rig(loaded)
    generator = BatchGenerator(loaded, DenseKernel())
    engine = {a.practice: a for a in answer_all(rig.engine, tokenizer, practices, Recipe(), quiet)}
    batched = {a.practice: a for a in answer_batched(loaded, generator, tokenizer, practices, Recipe(), 64, quiet)}
    assert engine == batched
    assert len(engine) == 5


def test_what_is_kept_and_what_is_replaced() -> None:
    loaded, tokenizer = tiny_model(), EndingTokenizer()
    generator = BatchGenerator(loaded, DenseKernel())
    (answered,) = answer_batched(loaded, generator, tokenizer, [practice(9)], Recipe(), 64, quiet)
    assert not answered.finished
    kept = to_example(answered, "all", tokenizer, replace_with_reference=False)
    assert kept is not None
    assert kept.token_ids == (*answered.practice.sample.token_ids, *answered.token_ids)
    assert kept.answer_spans == ((9, 15),)
    assert to_example(answered, "finished", tokenizer, replace_with_reference=False) is None
    replaced = to_example(answered, "right", tokenizer, replace_with_reference=True)
    assert replaced is not None
    assert replaced.token_ids[9:] == (1, 2, 7)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, default_model_folder: Path) -> Path:
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"), default_model_folder)
    template = (default_model_folder / "chat_template.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


@pytest.mark.model
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_distil_train_resume_merge_and_serve(tmp_path: Path, tiny_folder: Path) -> None:
    pytest.importorskip("peft")
    on = ["--model", str(tiny_folder), "--dtype", "float32"]
    data, output, merged = tmp_path / "d.jsonl", tmp_path / "tuned", tmp_path / "merged"
    distil = ["distill", *on, *SIZES, "--count", "3", "--reference", "--runner", "batched", "--output", str(data)]
    assert main(distil) == 0
    assert len(read_examples(data)) == 3
    train = ["finetune", *on, "--recipe", json.dumps(RECIPE), "--data", str(data), "--output", str(output)]
    train += ["--pack-tokens", "256", "--learning-rate", "0.01", "--checkpoint-steps", "1"]
    assert main([*train, "--time-limit-s", "0"]) == 0
    assert main([*train, "--merge", str(merged)]) == 0
    steps = [json.loads(line)["step"] for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert steps == [1, 2, 3], "the second run went on where the first was stopped"
    served = load_model(tiny_folder, torch.float32, torch.device("cpu"), {"tuned": output})
    assert list(served.adapters.ids) == ["tuned"]
    weight = load_model(merged, torch.float32, torch.device("cpu")).model.model.layers[0].self_attn.q_proj.weight
    projection = served.model.model.layers[0].self_attn.q_proj
    update = projection.updates[served.adapters.ids["tuned"]].weight()
    assert torch.allclose(weight, projection.base.weight + update, atol=1e-6)
    assert update.abs().max() > 0


@pytest.mark.model
def test_layers_are_chosen_and_judged_on_other_prompts(tmp_path: Path, tiny_folder: Path) -> None:
    output = tmp_path / "layers.json"
    command = ["calibrate", "--model", str(tiny_folder), "--dtype", "float32", *SIZES, "--count", "1"]
    command += ["--card-count", "2", "--recipe", json.dumps(RECIPE), "--num-layers", "1", "2", "--candidates", "2"]
    command += ["--methods", "leave-one-out", "greedy", "lazy-ratio", "--pack-tokens", "512", "--output", str(output)]
    assert main(command) == 0
    document = json.loads(output.read_text(encoding="utf-8"))
    sizes = [len(entry["recipe"]["lookback_layers"]) for entry in document["recipes"]]
    assert sizes == [1, 1, 1, 2, 2, 2]
    assert document["card"]["held_out_prompts"] == 2
    assert all(Recipe.from_mapping(entry["recipe"]).window == 64 for entry in document["recipes"])


def test_what_is_wrong_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["finetune", "--recipe", "unknown", "--data", "x", "--output", str(tmp_path), "--model", str(tmp_path)]
    assert main(command) == 1
    assert capsys.readouterr().err.startswith("swaa finetune: recipe is 'unknown': must be JSON, or of the file")
