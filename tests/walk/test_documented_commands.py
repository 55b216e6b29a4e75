"""Every command and Python snippet of README.md and docs/*.md runs, or stands in a list that says why not here."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli.main import app
from services.gateway.catalog_file import ServedModel, load_catalog
from services.tls import files_of, read_certificate

from . import documented
from .documented import REPOSITORY, Block, blocks, blocks_of, commands, commands_of
from .harness import SWAA, Service, environment, log_of, run_turn

pytestmark = [pytest.mark.model, pytest.mark.redis]

NOT_RUN_HERE: Mapping[str, str] = {
    "make demo": "CI runs it beside the tests",
    "make serve": "the tests' own service is started by the same command, swaa serve",
    "make cluster-demo": "takes minutes; tests/cluster kills replicas",
    "make soak": "takes half an hour; tests/soak runs the same for half a minute",
    "make chaos": "takes minutes; tests/chaos tries its parts, tests/cluster kills",
    "make fuzz": "takes many minutes; tests/fuzz and tests/walk/test_fuzz.py run some of it",
    ".venv/bin/swaa serve": "the tests' own service is started by it",
    "SWAA_CATALOG=smollm2.yaml .venv/bin/swaa serve": "runs until it is stopped; its catalogue is loaded below",
    "SWAA_API_KEYS_FILE=keys.json .venv/bin/swaa serve": "runs until it is stopped; test_identity.py starts such a one",
    ".venv/bin/swaa calibrate": "takes minutes, with --quality hours; with --quick it is run",
    ".venv/bin/swaa distill": "needs a GPU, or hours; tests/services/quality trains tiny models",
    ".venv/bin/swaa finetune": "the same",
    "SWAA_ADAPTERS=mine=my-adapter .venv/bin/swaa serve": "runs until it is stopped, with what finetune has made",
    "SWAA_TLS_CERT_FILE=server.pem SWAA_TLS_KEY_FILE=server.key .venv/bin/swaa serve": "runs until it is stopped",
    "SWAA_CLIENT_CA_FILE=client.pem .venv/bin/swaa info": "needs a service with TLS; tests/walk/test_tls.py runs it",
    "grpcurl -cacert ": "the same",
    "curl -s --cacert ": "the same",
    "docker ": "needs Docker; tests/k8s/test_images.py lints the files and checks what they install",
    "kubectl ": "needs a cluster; tests/k8s holds the manifests to their schemas",
}
"""By how a command starts; why it is not run. What is a command of ours is still parsed."""

RUN_AFTER_ALL = (".venv/bin/swaa calibrate --quick",)
"""Start like something that is not run, and are."""

SUBSTITUTIONS: Mapping[str, str] = {
    "--rate 2 --duration-s 60": "--rate 8 --duration-s 2",
    "--lengths 1000 4000 --samples 20": "--lengths 250 --samples 1",
    "grpcurl ": "{grpcurl} ",
    "127.0.0.1:50051": "{grpc}",
    "http://127.0.0.1:8080": "http://{http}",
    "<id>": "{session}",
    "eval run ": "eval run --model {model} ",
    "--prompt-tokens 6000": "--prompt-tokens 600",
    '"prompt_tokens": 4000': '"prompt_tokens": 400',
}
"""What is put for what, so that commands meet the tests' own small service."""

COMMANDS = commands()


def why_not(command: str) -> str | None:
    """The entry of NOT_RUN_HERE that a command falls under."""
    if command in RUN_AFTER_ALL:
        return None
    return next((start for start in NOT_RUN_HERE if command.startswith(start)), None)


RUN = [(page, command) for page, command in COMMANDS if why_not(command) is None]
PARSED = sorted({command for _, command in COMMANDS if why_not(command) is not None})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: Service) -> Path:
    """Where commands run: as a checkout, with this one's `swaa` and `python`, and the files that they name."""
    root = tmp_path_factory.mktemp("checkout")
    (root / ".venv" / "bin").mkdir(parents=True)
    for name, program in (("swaa", SWAA), ("python", (sys.executable,))):
        path = root / ".venv" / "bin" / name
        path.write_text(f'#!/bin/sh\nexec {shlex.join(program)} "$@"\n', encoding="utf-8")
        path.chmod(0o755)
    (root / "services").symlink_to(REPOSITORY / "services")
    (root / "report.txt").write_text(log_of(6), encoding="utf-8")
    for block in blocks():
        if block.name:
            (root / block.name).write_text(block.text, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def session_id(tiny: Service) -> str:
    return run_turn(tiny, "A report.", {"x-swaa-session": "new", "x-swaa-recipe": "sliding"}, max_tokens=2).session_id


def run(command: str, folder: Path, tiny: Service, session_id: str) -> subprocess.CompletedProcess[str]:
    for text, other in SUBSTITUTIONS.items():
        command = command.replace(text, other)
    model = tiny.model
    grpcurl = shutil.which("grpcurl", path=os.fspath(Path(sys.executable).parent)) or "grpcurl"
    command = command.replace("{grpcurl}", grpcurl).replace("{grpc}", tiny.address).replace("{http}", tiny.http_address)
    command = command.replace("{session}", session_id).replace("{model}", model)
    settings = {"SWAA_LISTEN": tiny.address, "SWAA_MODEL": model, "SWAA_CACHE_DIR": str(folder / "cache")}
    settings["SWAA_API_KEY"] = "not-looked-at"  # by a service that asks for none
    variables = {**environment(**settings), "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        ("/bin/bash", "-euo", "pipefail", "-c", command),
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize("page", documented.PAGES)
def test_every_command_runs(page: str, folder: Path, tiny: Service, session_id: str) -> None:
    """In the page's order: some read what others wrote."""
    for command in (command for where, command in RUN if where == page):
        done = run(command, folder, tiny, session_id)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        if command.startswith("curl "):
            assert done.stdout, command
            assert '"error"' not in done.stdout, f"{command}\n{done.stdout}"
    if page == "docs/operating.md":
        catalog, _ = load_catalog(folder / "smollm2.yaml", ServedModel(30))
        assert "full" in catalog.recipes
        made = files_of(
            "tls", folder / "server.pem", folder / "server.key", "tls_client_ca_file", folder / "client.pem"
        )
        assert made is not None
        assert read_certificate(made).authorities


@pytest.mark.parametrize("command", PARSED)
def test_what_is_not_run_is_at_least_spelled_right(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{words[1]}:.*## ", makefile, re.MULTILINE), command
    elif ".venv/bin/swaa" in words:
        name = words[words.index(".venv/bin/swaa") + 1]
        usage = ("--quality", "--usage") if "--quality" in words else ("--help",)
        shown = CliRunner().invoke(app, [name, *usage], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
        assert shown.exit_code == 0, shown.output
        for option in {word for word in words if word.startswith("--")} - {*usage}:
            assert option in shown.output, command
    else:
        assert words[0] in ("docker", "kubectl", "curl", "grpcurl"), command
        for path in re.findall(r"\bk8s/[\w./-]+", command):
            assert (REPOSITORY / path).exists(), command


def test_the_lists_are_not_stale() -> None:
    told = [command for _, command in COMMANDS]
    for start in NOT_RUN_HERE:
        assert any(why_not(command) == start for command in told), f"no page has {start!r} any more"
    for text in SUBSTITUTIONS:
        assert any(text in command for _, command in RUN), f"no command that is run has {text!r} any more"
    assert set(RUN_AFTER_ALL) <= set(told)


def test_no_shell_line_is_overlooked() -> None:
    assert {page for page, _ in COMMANDS} >= {"README.md", "docs/operating.md", "docs/recipes.md", "docs/clients.md"}
    for page, command in COMMANDS:
        assert command.startswith(documented.PROGRAMS), f"{page}: {command!r} starts with no program that is known"
    for block in blocks():
        assert block.kind in ("sh", "python", "yaml", "text"), f"{block.page}: what is this?\n{block.text}"
        if block.kind == "text":
            for line in block.text.splitlines():
                assert not line.startswith(documented.PROGRAMS), f"{block.page}: a command among text: {line}"


def test_blocks_are_told_apart() -> None:
    page = (
        "\n\n    make a    # why\n    .venv/bin/swaa b \\\n      --c\n\n```yaml f.yaml\nx: 1\n```\n\n    a sketch\n\n"
    )
    named, shell, text = blocks_of("p", page)
    assert named == Block("p", "yaml", "f.yaml", "x: 1\n")
    assert (shell.kind, commands_of(shell.text)) == ("sh", ["make a", ".venv/bin/swaa b    --c"])
    assert (text.kind, text.text) == ("text", "a sketch\n")


@pytest.mark.parametrize("block", [block for block in blocks() if block.kind == "python"], ids=lambda b: b.text[:30])
def test_every_snippet_runs(block: Block, tiny: Service, capsys: pytest.CaptureFixture[str]) -> None:
    source = block.text.replace("127.0.0.1:50051", tiny.address).replace("127.0.0.1:8080", tiny.http_address)
    exec(source, {})  # noqa: S102 - it is ours
    assert capsys.readouterr().out
