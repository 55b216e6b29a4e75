"""The cluster that suffers: two replicas, a gateway, its Redis behind a link; and, as root, a gateway to be cut off."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer

from benchmarks.workload import DOCUMENT, make_tiny_model
from services.cluster import APPLICATION
from services.gateway.catalog_file import ServedModel, catalog_path, load_catalog
from services.sessions.embedded_redis import EmbeddedRedis
from tests.chaos.faults import Victims
from tests.chaos.link import Link
from tests.chaos.namespace import Namespace, available, namespace
from tests.chaos.run import Watched
from tests.cluster.harness import until
from tests.cluster.running import Running, running_process
from tests.soak.oracle import Oracle
from tests.soak.world import Target

NUM_REPLICAS = 2
START_S = 600.0
NAMESPACE = "swaa-chaos"


@contextlib.contextmanager
def suffering(default_model_folder: Path, seed: int, isolated: bool = True) -> Iterator[tuple[Watched, Sequence[int]]]:
    """Running, and the text that prompts are cut from. `isolated`: with a gateway in a namespace, if that can be."""
    with contextlib.ExitStack() as stack:
        name = tempfile.TemporaryDirectory(prefix="swaa-ch-", ignore_cleanup_errors=True)
        folder = Path(stack.enter_context(name))
        model = make_tiny_model(folder, default_model_folder)
        apart = stack.enter_context(namespace(NAMESPACE)) if isolated and available() else None
        redis = stack.enter_context(EmbeddedRedis(folder / "redis"))
        link = stack.enter_context(Link(redis.socket_path, "127.0.0.1" if apart is None else "0.0.0.0"))  # noqa: S104
        http_port = _free_port()
        settings = {"redis_url": f"redis://127.0.0.1:{link.port}/0", "http_listen": f"127.0.0.1:{http_port}"}
        if apart is not None:
            # Reached by way of links that nobody else is on.
            settings |= {"replica_host": apart.reaches, "insecure_public": "true"}
        cluster = stack.enter_context(running_process(folder, model, redis, NUM_REPLICAS, 1, settings))
        targets = [Target(cluster.gateways[0], f"127.0.0.1:{http_port}")]
        if apart is not None:
            targets.append(stack.enter_context(_gateway_apart(cluster, apart, link.port)))
        tokenizer = AutoTokenizer.from_pretrained(model)
        layers = AutoConfig.from_pretrained(model).num_hidden_layers
        catalog, _ = load_catalog(catalog_path(None, "smollm2"), ServedModel(layers))
        recipes = {name: named.recipe for name, named in catalog.recipes.items()}
        watched = Watched(
            victims=Victims(redis, link, cluster.replicas, apart, NUM_REPLICAS, random.Random(seed)),
            targets=targets,
            oracle=Oracle(model, torch.float32, recipes),
            decode=lambda tokens: str(tokenizer.decode(list(tokens), skip_special_tokens=True)),
        )
        yield watched, tokenizer(DOCUMENT.read_text(encoding="utf-8"))["input_ids"]


@contextlib.contextmanager
def _gateway_apart(cluster: Running, apart: Namespace, redis_port: int) -> Iterator[Target]:
    """One more gateway, in the namespace."""
    ready = cluster.folder / "ready-apart"
    target = Target(f"{apart.clients_reach}:50051", f"{apart.clients_reach}:8080")
    settings = {
        "SWAA_LISTEN": target.grpc,
        "SWAA_HTTP_LISTEN": target.http,
        "SWAA_REPLICAS": f"{apart.reaches}:{cluster.replicas_at.rpartition(':')[2]}",
        "SWAA_REDIS_URL": f"redis://{apart.reaches}:{redis_port}/0",
        "SWAA_APPLICATION": APPLICATION,
    }
    command = apart.command(sys.executable, "-m", "services.cli", "gateway", "--ready-file", str(ready))
    with (cluster.folder / "gateway-apart.log").open("wb") as log:
        process = subprocess.Popen(command, env={**cluster.environment, **settings}, stdout=log, stderr=log)
    try:
        until("the gateway in the namespace serves", ready.exists, START_S)
        yield target
    finally:
        process.terminate()
        process.wait(START_S)


def _free_port() -> int:
    """A port that was free a moment ago: the ready file of a cluster does not tell those of HTTP."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
