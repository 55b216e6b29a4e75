"""The service that is soaked: `swaa serve` in a process of its own, with little memory, so that it has to make room."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import redis
from transformers import AutoConfig, AutoTokenizer

from benchmarks.workload import DOCUMENT
from services.config import load_config
from services.gateway.catalog_file import ServedModel, catalog_path, load_catalog
from services.replica.parts import model_folder, served_dtype
from tests.soak.oracle import Oracle
from tests.soak.run import Watched
from tests.soak.world import Target
from tests.walk.harness import Service

SETTINGS: Mapping[str, str] = {
    "kv_memory_mib": "128",
    "swap_memory_mib": "128",
    "checkpoint_tokens": "256",
    "session_quota_mib": "384",
    "max_waiting": "16",
    "prefix_ttl_s": "600",
    "interrupt_tokens": "256",
}
"""Of the default model: KV of some 5,700 tokens, a store full after some minutes, steps that are interrupted."""


@contextlib.contextmanager
def served(folder: Path, settings: Mapping[str, str]) -> Iterator[tuple[Watched, Sequence[int]]]:
    """Running, with all that is to be watched of it, and the text that its prompts are cut from."""
    config = load_config(**settings)
    model = model_folder(config)
    tokenizer = AutoTokenizer.from_pretrained(model)
    dtype = served_dtype(config)
    with (
        Service(folder, **settings) as service,
        redis.Redis.from_url(settings.get("redis_url") or service.redis_url) as client,
    ):
        shape = AutoConfig.from_pretrained(model)
        catalog, _ = load_catalog(catalog_path(None, "smollm2"), ServedModel(shape.num_hidden_layers))
        recipes = {name: named.recipe for name, named in catalog.recipes.items()}
        watched = Watched(
            target=Target(service.address, service.http_address),
            pid=service.pid,
            redis=client,
            oracle=Oracle(model, dtype, recipes),
            decode=lambda tokens: str(tokenizer.decode(list(tokens), skip_special_tokens=True)),
            num_layers=shape.num_hidden_layers,
            max_model_tokens=shape.max_position_embeddings,
            log=lambda: service.log,
        )
        yield watched, tokenizer(DOCUMENT.read_text(encoding="utf-8"))["input_ids"]
