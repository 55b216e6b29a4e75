"""Model folders are data: pickles are read only where the flag says so, and code that comes along is never run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from swaa_runtime.errors import ModelNotSupported
from swaa_runtime.model.adapters import read_adapter
from swaa_runtime.model.files import DATA_ONLY, weight_files
from swaa_runtime.model.loader import load_model
from tests.swaa_runtime.builders import build_transformer, tiny_config

CPU = torch.device("cpu")


class Bomb:
    """Pickled, it makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model with pickled weights."""
    model = build_transformer(tiny_config("llama", num_layers=2), "eager")
    model.config.save_pretrained(tmp_path / "model")
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    return tmp_path / "model"


def test_pickled_weights_are_refused_without_being_read(folder: Path, tmp_path: Path) -> None:
    torch.save({"a": Bomb(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelNotSupported, match=r"only pickled weights .*SWAA_ALLOW_PICKLE_WEIGHTS"):
        load_model(folder, torch.float32, CPU)
    assert not (tmp_path / "ran").exists()


def test_with_the_flag_they_are_read_and_have_a_fingerprint_of_their_own(folder: Path) -> None:
    first = load_model(folder, torch.float32, CPU, allow_pickle=True).fingerprint
    other = build_transformer(tiny_config("llama", num_layers=2), "eager")
    torch.save({name: value + 1 for name, value in other.state_dict().items()}, folder / "pytorch_model.bin")
    assert load_model(folder, torch.float32, CPU, allow_pickle=True).fingerprint != first


def test_pickles_beside_safetensors_are_never_read(folder: Path, tmp_path: Path) -> None:
    build_transformer(tiny_config("llama", num_layers=2), "eager").save_pretrained(folder)
    torch.save({"a": Bomb(tmp_path / "ran")}, folder / "pytorch_model.bin")
    assert [path.suffix for path in weight_files(folder, allow_pickle=True)] == [".safetensors"]
    load_model(folder, torch.float32, CPU, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelNotSupported, match="has no weights"):
        load_model(folder, torch.float32, CPU)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_pickled_adapters_are_refused(tmp_path: Path, name: str) -> None:
    torch.save({"a": Bomb(tmp_path / "ran")}, tmp_path / name)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))
    with pytest.raises(ModelNotSupported, match="only pickled weights"):
        read_adapter("bad", tmp_path, None)
    assert not (tmp_path / "ran").exists()


def add_code(folder: Path, mark: Path, **changes: str) -> None:
    """Let the folder name classes of its own, for the model and for the tokenizer, in a file that leaves a mark."""
    build_transformer(tiny_config("llama", num_layers=2), "eager").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}})
    )
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")


def test_code_in_a_models_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    add_code(folder, tmp_path / "ran")
    assert load_model(folder, torch.float32, CPU).shape.num_layers == 2
    with pytest.raises((ValueError, OSError, AttributeError, TypeError)):
        AutoTokenizer.from_pretrained(folder, **DATA_ONLY)
    assert not (tmp_path / "ran").exists()


def test_a_model_that_cannot_do_without_its_own_code_is_refused(folder: Path, tmp_path: Path) -> None:
    add_code(folder, tmp_path / "ran", model_type="own")
    with pytest.raises(ModelNotSupported, match="code of its own"):
        load_model(folder, torch.float32, CPU)
    assert not (tmp_path / "ran").exists()
