"""A model of a family that only code of its own knows is refused; `test_files` shows that no other folder's is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from swaa_runtime.errors import ModelNotSupported
from swaa_runtime.model.loader import load_model
from tests.swaa_runtime.builders import tiny_config

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path(__file__).with_name("was-run").touch()
class OwnConfig(LlamaConfig): pass
class OwnModel(LlamaForCausalLM): pass
"""


def folder_with_code(folder: Path, **changes: str) -> Path:
    """A model that says that its classes are in a file beside it."""
    LlamaForCausalLM(tiny_config("llama")).save_pretrained(folder)
    (folder / "own.py").write_text(CODE, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    return folder


def test_a_model_that_cannot_do_without_its_own_code_is_refused(tmp_path: Path) -> None:
    folder = folder_with_code(tmp_path, model_type="own")
    with pytest.raises(ModelNotSupported, match="code of its own"):
        load_model(folder, torch.float32, torch.device("cpu"))
    assert not list(tmp_path.rglob("was-run"))
