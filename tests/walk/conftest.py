"""One running service for all tests of this folder that leave it as it was."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.workload import make_tiny_model
from services.gateway.catalog_file import catalog_path

from .harness import Service

CHAT_TEMPLATE = """
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>
{% endif -%}
{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""The default model's, and tools as Qwen's templates show them."""


@pytest.fixture(scope="session")
def walk_folder() -> Iterator[Path]:
    """A folder with a path short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="swaa-walk-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def service(walk_folder: Path) -> Iterator[Service]:
    """The service with its default settings."""
    folder = walk_folder / "shared"
    folder.mkdir()
    with Service(folder) as service:
        yield service
        assert service.stop() == 0


@pytest.fixture(scope="session")
def tiny_catalog(walk_folder: Path) -> Path:
    """The catalogue of `tiny`: the shipped one, as a file of any other folder would be."""
    shipped, path = catalog_path(None, "smollm2"), walk_folder / "catalog.yaml"
    text = shipped.read_text(encoding="utf-8")
    quality = str(shipped.parents[1] / "quality_smollm2.json")
    path.write_text(text.replace("../quality_smollm2.json", quality), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny(walk_folder: Path, default_model_folder: Path, tiny_catalog: Path) -> Iterator[Service]:
    """A service of a tiny random model, with little memory: for what does not depend on the answer's sense."""
    folder = walk_folder / "tiny"
    folder.mkdir()
    model = make_tiny_model(folder, default_model_folder)
    (model / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    settings = {"model": str(model), "dtype": "float32", "kv_memory_mib": "16", "cache_dir": str(folder)}
    with Service(folder, catalog=str(tiny_catalog), **settings) as service:
        yield service
        assert service.stop() == 0
