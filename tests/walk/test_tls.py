"""TLS as the guide tells of it: its own commands, against a service started with what the first of them made."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.services.certificates import look, serial_of, trusting

from .documented import REPOSITORY, commands
from .harness import SWAA, Service, environment, wait_until

pytestmark = [pytest.mark.model, pytest.mark.redis]

GUIDE = [command for page, command in commands() if page == "docs/operating.md" and "client.pem" in command]
MAKE = shlex.split("-m trustme --quiet")


@pytest.fixture(scope="module")
def folder(walk_folder: Path) -> Path:
    """With a certificate."""
    folder = walk_folder / "tls"
    folder.mkdir()
    make_certificate(folder)
    return folder


def make_certificate(folder: Path) -> None:
    """As the guide's first command does. What was there before is overwritten in place, one file after the other."""
    subprocess.run((sys.executable, *MAKE), cwd=folder, check=True)


@pytest.fixture(scope="module")
def secure(folder: Path, tiny: Service, walk_folder: Path) -> Iterator[Service]:
    """The tiny service once more, with TLS."""
    settings = {"model": tiny.model, "dtype": "float32", "kv_memory_mib": "16", "cache_dir": str(walk_folder / "tiny")}
    files = {"tls_cert_file": str(folder / "server.pem"), "tls_key_file": str(folder / "server.key")}
    with Service(folder, **settings, **files) as service:
        yield service
        assert service.stop() == 0


def test_the_guide_has_a_command_for_every_client() -> None:
    assert [re.sub(r"^\S+=\S+ ", "", command).split()[0] for command in GUIDE] == [".venv/bin/swaa", "grpcurl", "curl"]


@pytest.mark.parametrize("command", GUIDE)
def test_what_the_guide_says(command: str, secure: Service, folder: Path) -> None:
    for told, ours in (
        (".venv/bin/swaa", shlex.join(SWAA)),
        ("grpcurl", os.fspath(Path(sys.executable).parent / "grpcurl")),
        ("127.0.0.1:50051", secure.address),
        ("127.0.0.1:8080", secure.http_address),
    ):
        command = command.replace(told, ours)
    variables = {**environment(SWAA_LISTEN=secure.address), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        ("/bin/sh", "-c", command), cwd=folder, env=variables, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"model|swaa\.v1\.LongContext", done.stdout)


def test_a_renewed_certificate_is_served_and_told_of_without_a_restart(secure: Service, folder: Path) -> None:
    ca, port = folder / "client.pem", int(secure.http_address.rpartition(":")[2])

    def served() -> int:
        return asyncio.run(look(port, trusting(ca))).serial

    def metric(name: str) -> float:
        text = httpx.get(f"https://{secure.http_address}/metrics", verify=trusting(ca)).text
        (value,) = re.findall(rf'^{name}{{wire="clients"}} (\S+)$', text, re.MULTILINE)
        return float(value)

    assert served() == serial_of(folder / "server.pem")
    key, old = (folder / "server.key").read_bytes(), serial_of(folder / "server.pem")
    (folder / "server.key").write_bytes(key[: len(key) // 2])
    assert wait_until(lambda: metric("swaa_tls_reload_error") == 1)
    assert served() == old
    assert metric("swaa_tls_reload_failures_total") >= 1
    assert metric("swaa_tls_certificate_expiry_timestamp_seconds") > 0
    assert "the new certificate is not used, the old one stays: tls_key_file is" in secure.log
    trust = ca.read_bytes()
    make_certificate(folder)
    renewed = serial_of(folder / "server.pem")
    assert wait_until(lambda: trusts(port, ca))
    assert served() == renewed != old
    assert metric("swaa_tls_reload_error") == 0
    assert ca.read_bytes() != trust  # another authority: whoever trusts the old one alone is not fooled


def trusts(port: int, ca: Path) -> bool:
    """Whether what is served is of this authority."""
    try:
        asyncio.run(look(port, trusting(ca)))
    except OSError:
        return False
    return True
