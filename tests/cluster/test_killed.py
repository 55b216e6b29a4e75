"""A cluster whose process is killed: nothing of it stays behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.config import ServeConfig

from .harness import processes_with, until
from .running import START_TIMEOUT_S

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.model]


def test_nothing_of_a_killed_cluster_stays_behind(config: ServeConfig, tmp_path: Path) -> None:
    settings = {"SWAA_MODEL": config.model, "SWAA_DTYPE": config.dtype, "SWAA_KV_MEMORY_MIB": "8"}
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SWAA_")},
        **settings,
        "SWAA_HTTP_LISTEN": "",
        "SWAA_CACHE_DIR": str(config.cache_dir),
        "SWAA_STATE_DIR": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    ready, log_path = tmp_path / "ready", tmp_path / "log"
    command = (sys.executable, "-m", "services.cli", "serve", "--ray", "--num-replicas", "1", "--listen", "127.0.0.1:0")
    with log_path.open("wb") as log:
        process = subprocess.Popen((*command, "--ready-file", str(ready)), env=environment, stdout=log, stderr=log)
    with process:
        try:
            until("it serves", lambda: ready.exists() or process.poll() is not None, START_TIMEOUT_S)
            assert process.poll() is None, log_path.read_text(encoding="utf-8")[-2000:]
            assert len(ready.read_text(encoding="utf-8").splitlines()) == 1
            assert len(processes_with(str(tmp_path))) > 6, "Redis, Ray's own, Serve's, a replica, a gateway"
        finally:
            process.kill()
    until("all its processes are gone", lambda: not processes_with(str(tmp_path)), 120)
