"""A cluster whose process is killed: nothing of it stays behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.config import ServeConfig

from .harness import processes_with, until

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.model]

SCRIPT = """
import sys, time
from services.cluster import running_cluster
from services.config import load_config
with running_cluster(load_config(), 1, 0, {"num_cpus": "0.1"}):
    print("up", flush=True)
    time.sleep(600)
"""


def test_nothing_of_a_killed_cluster_stays_behind(config: ServeConfig, tmp_path: Path) -> None:
    settings = {"SWAA_MODEL": config.model, "SWAA_DTYPE": config.dtype, "SWAA_KV_MEMORY_MIB": "2"}
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SWAA_")},
        **settings,
        "SWAA_CACHE_DIR": str(config.cache_dir),
        "SWAA_STATE_DIR": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    with (tmp_path / "log").open("wb") as log:
        command = (sys.executable, "-c", SCRIPT)
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n", (tmp_path / "log").read_text(encoding="utf-8")[-2000:]
        assert len(processes_with(str(tmp_path))) > 5, "Redis, Ray's own, Serve's, a replica"
        process.kill()
    until("all its processes are gone", lambda: not processes_with(str(tmp_path)), 20)
