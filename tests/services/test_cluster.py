"""Gateways of a cluster on one machine, shown with a program that only says that it is ready."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from services.cluster import ClusterFailed, running_gateway
from tests.cluster.harness import processes_with, until

GONE_S = 60.0

GATEWAY = """#!/bin/sh
# -m services.cli gateway --ready-file FILE --http-ready-file FILE
if [ -e {broken} ]; then echo "this machine is broken"; exit 3; fi
echo "$SWAA_LISTEN $SWAA_HTTP_LISTEN" >> {starts}
echo 127.0.0.1:2 > "$7"
echo 127.0.0.1:1 > "$5"
exec sleep 1000
"""


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A file: while it is there, no gateway starts."""
    return tmp_path / "broken"


@pytest.fixture
def starts(tmp_path: Path, broken: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file: a line for each start, with the two addresses that were asked for."""
    starts, program = tmp_path / "starts", tmp_path / "program"
    starts.touch()
    program.write_text(GATEWAY.format(broken=broken, starts=starts))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setenv("GATEWAY_OF_TEST", str(tmp_path))
    return starts


SETTINGS = {"listen": "127.0.0.1:0", "http_listen": "127.0.0.1:0"}


def kill_program(folder: Path) -> None:
    """As if it crashed: not the shell that guards it, which tells us of it."""
    [pid] = [pid for pid in processes_with(str(folder)) if b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes()[:6]]
    os.kill(pid, signal.SIGKILL)
    until("its guard has noticed, and gone as well", lambda: not processes_with(str(folder)), GONE_S)


def test_a_gateway_that_ended_is_started_again_at_its_addresses(tmp_path: Path, starts: Path) -> None:
    with running_gateway(SETTINGS, tmp_path / "log", drain_s=1.0) as gateway:
        assert gateway.address == "127.0.0.1:1"
        gateway.keep_up()  # nothing to do
        assert starts.read_text().splitlines() == ["127.0.0.1:0 127.0.0.1:0"]
        kill_program(tmp_path)
        gateway.keep_up()
        until("it is up again", lambda: len(starts.read_text().splitlines()) == 2, GONE_S)
        gateway.keep_up()
        assert starts.read_text().splitlines()[1:] == ["127.0.0.1:1 127.0.0.1:2"]
    until("nothing is left of it", lambda: not processes_with(str(tmp_path)), GONE_S)


def test_a_gateway_that_does_not_come_up_again_is_an_error(tmp_path: Path, starts: Path, broken: Path) -> None:
    with running_gateway(SETTINGS, tmp_path / "log", drain_s=1.0) as gateway:
        broken.touch()
        kill_program(tmp_path)
        gateway.keep_up()
        until("it has ended again", lambda: not processes_with(str(tmp_path)), GONE_S)
        with pytest.raises(ClusterFailed, match="this machine is broken"):
            gateway.keep_up()


def test_a_gateway_that_does_not_start_is_an_error(tmp_path: Path, starts: Path, broken: Path) -> None:
    broken.touch()
    with (
        pytest.raises(ClusterFailed, match="this machine is broken"),
        running_gateway(SETTINGS, tmp_path / "log", drain_s=1.0),
    ):
        pytest.fail("it served")
    assert not starts.read_text()
