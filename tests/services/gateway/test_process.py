"""A gateway as a process of its own."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from services.config import load_config
from services.gateway.process import running_gateway
from swaa_runtime.errors import InvalidRequest

WITHOUT = """
import sys
sys.modules["torch"] = sys.modules["ray"] = None  # as if they were not installed
import services.gateway.process, services.cli.main, services.cli.process
print("imported")
"""


def test_it_needs_neither_torch_nor_ray() -> None:
    ran = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=120, check=False)
    assert ran.stdout == "imported\n", ran.stderr[-2000:]


@pytest.mark.parametrize("missing", ["replicas", "redis_url"])
def test_it_says_what_it_needs(missing: str) -> None:
    settings = {"replicas": "127.0.0.1:1", "redis_url": "redis://127.0.0.1:1"}
    del settings[missing]

    async def run() -> None:
        async with running_gateway(load_config(**settings)):
            pass

    with pytest.raises(InvalidRequest, match=f"{missing} is None: a gateway needs it"):
        asyncio.run(run())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"listen": "0.0.0.0:0"}, "listen is '0.0.0.0:0': can be reached from other machines"),
        ({"tls_cert_file": Path("nowhere.pem")}, "tls_key_file is None: must be set"),
        ({"replica_tls_cert_file": Path("nowhere.pem")}, "replica_tls_key_file is None: must be set"),
        (
            {"tls_cert_file": Path("nowhere.pem"), "tls_key_file": Path("nowhere.key")},
            "tls_cert_file is 'nowhere.pem': cannot be read",
        ),
    ],
)
def test_it_does_not_start_where_it_would_not_be_safe(settings: dict[str, Any], said: str) -> None:
    async def run() -> None:
        config = load_config(replicas="127.0.0.1:1", redis_url="redis://127.0.0.1:1", **settings)
        async with running_gateway(config):
            pass

    with pytest.raises(InvalidRequest, match=re.escape(said)):
        asyncio.run(run())
