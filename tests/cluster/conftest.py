"""One real Ray cluster: two replicas with two places each, one gateway.

Only the modules that come last use it: those before have clusters of their own, and one that idles beside takes a fifth
of a core.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from services.cluster import Cluster, running_cluster
from services.config import ServeConfig, load_config

from .harness import processes_with, until

OPTIONS = {"num_cpus": "0.1", "max_leases": "2", "max_waiting_leases": "1"}


@pytest.fixture(scope="package")
def folder() -> Iterator[Path]:
    """With a path short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="swaa-cl-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="package")
def config(folder: Path, tiny_folder: Path) -> ServeConfig:
    """Of a cluster whose model is tiny and whose measurements are quick."""
    return load_config(
        model=str(tiny_folder),
        dtype="float32",
        kv_memory_mib=8,
        listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
        drain_s=180.0,  # longer than a lease without a turn lasts, on a busy machine, too
        cache_dir=tiny_folder.parent,
        state_dir=folder / "state",
    )


@pytest.fixture(scope="package")
def cluster(config: ServeConfig, folder: Path) -> Iterator[Cluster]:
    """Running; when it has stopped, nothing that belongs to it runs any more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLUSTER_OF_TESTS", str(folder))  # all processes inherit it
        with running_cluster(config, 2, 1, OPTIONS) as cluster:
            assert processes_with(str(folder))
            yield cluster
    until("all processes of the cluster are gone", lambda: not processes_with(str(folder)), 120)


@pytest.fixture
def channel(cluster: Cluster) -> Iterator[grpc.Channel]:
    """To Serve's gRPC proxy."""
    with grpc.insecure_channel(cluster.replicas) as channel:
        yield channel
