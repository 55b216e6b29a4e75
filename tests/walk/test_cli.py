"""The `swaa` command as a user types it: what it prints where, and its exit codes."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli.main import app, main
from services.pb.swaa.v1 import long_context_pb2 as pb

from .harness import SWAA, Service, environment, log_of, run_swaa, run_turn

pytestmark = [pytest.mark.model, pytest.mark.redis]

COMMANDS = ("serve", "calibrate", "generate", "plan", "recipes", "info", "sessions", "demo")
QUESTION = "Which ship came in on day 3?"


def succeed(*arguments: str, stdin: bytes = b"") -> tuple[str, str]:
    """Standard output and error of a command that works."""
    ran = run_swaa(*arguments, stdin=stdin)
    assert ran.returncode == 0, ran.stderr.decode()
    return ran.stdout.decode(), ran.stderr.decode()


def fail(*arguments: str, stdin: bytes = b"") -> str:
    """The one line that a command says which does not work."""
    ran = run_swaa(*arguments, stdin=stdin)
    [error] = ran.stderr.decode().strip().splitlines()
    assert ran.returncode == 1, error
    assert ran.stdout == b""
    return error


Swaa = Callable[..., tuple[str, str]]
Fail = Callable[..., str]


@pytest.fixture
def swaa(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Swaa:
    """`succeed` in this process, as a new one takes seconds to import everything."""

    def run(*arguments: str, stdin: bytes = b"", code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["swaa", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        assert (caught.value.code or 0) == code, captured.err
        return captured.out, captured.err

    return run


@pytest.fixture
def fail_here(swaa: Swaa) -> Fail:
    """What a command says which does not work, likewise."""

    def run(code: int, *arguments: str, stdin: bytes = b"") -> str:
        out, error = swaa(*arguments, stdin=stdin, code=code)
        assert out == ""
        return error

    return run


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "log.txt"
    path.write_text(log_of(8) + "\n", encoding="utf-8")
    return path


def test_the_command_tells_its_commands() -> None:
    out, _ = succeed("--help")
    for name in COMMANDS:
        assert re.search(rf"\b{name}\b", out)


@pytest.mark.parametrize(
    "command",
    [
        *((name,) for name in COMMANDS),
        *(("sessions", name) for name in ("list", "get", "fork", "delete", "export", "import")),
    ],
)
def test_every_command_tells_its_options(command: tuple[str, ...]) -> None:
    ran = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert ran.exit_code == 0
    assert "Usage:" in ran.output
    assert "--help" in ran.output
    if command[0] not in ("serve", "calibrate", "demo") and command != ("sessions",):
        assert "--server" in ran.output


def test_generate_from_a_file_prints_the_answer_and_nothing_else(service: Service, document: Path) -> None:
    out, error = succeed(
        "generate", str(document), "-q", QUESTION, "--max-tokens", "12", "--recipe", "full", "-s", service.address
    )
    prompt = pb.Prompt(messages=[pb.ChatMessage(role="user", content=f"{log_of(8)}\n\n{QUESTION}")])
    expected = run_turn(service, prompt, {"x-swaa-recipe": "full"}, max_tokens=12)
    assert out == expected.text + "\n"
    assert "recipe full for class balanced (asked for by x-swaa-recipe)" in error
    usage = expected.finish.usage
    assert f"tokens: prompt {usage.prompt_tokens}, history 0, restored 0, computed {usage.prompt_tokens}" in error
    assert re.search(r"TTFT [\d,]+ ms \(predicted [\d,]+\), TPOT [\d.]+ ms", error)
    assert "full attention holds" in error
    assert "session" not in error


def test_a_session_from_standard_input(service: Service, swaa: Swaa, fail_here: Fail, tmp_path: Path) -> None:
    options = ("--raw", "--max-tokens", "4", "--recipe", "full", "-s", service.address)
    _, error = succeed("generate", *options, "--session", "new", stdin=b"The ship \xe2\x82\xac")
    found = re.search(r"session (\w+) saved as version 1 .*history none", error)
    assert found, error
    _, error = swaa("generate", "-", *options, "--session", found[1], stdin=b" and then")
    assert f"session {found[1]} saved as version 2" in error
    assert "history hot" in error

    out, _ = swaa("sessions", "list", "-s", service.address)
    assert found[1] in out
    out, _ = swaa("sessions", "get", found[1], "-s", service.address)
    assert re.search(rf"{found[1]}\W+2\W+2\W+\d+\W+full", out), out
    out, _ = swaa("sessions", "fork", found[1], "-s", service.address)
    [copy] = set(re.findall(r"\b[0-9a-f]{32}\b", out))
    assert copy != found[1]
    file = tmp_path / "chat.swaa"
    out, _ = swaa("sessions", "export", found[1], str(file), "-s", service.address)
    assert out == f"exported {found[1]}: {file.stat().st_size:,} bytes\n"
    assert file.stat().st_mode & 0o077 == 0, "a conversation is nobody else's to read"
    out, _ = swaa("sessions", "import", str(file), "-s", service.address)
    assert re.search(r"\b(?!" + found[1] + r")[0-9a-f]{32}\W+1\W+2\W+\d+\W+full", out), out
    out, _ = swaa("sessions", "delete", found[1], "-s", service.address)
    assert out == f"deleted {found[1]}\n"
    before = file.read_bytes()
    assert fail_here(1, "sessions", "export", found[1], str(file), "-s", service.address).startswith("NOT_FOUND: ")
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
    assert f"NOT_FOUND: no session '{found[1]}'" in fail_here(1, "sessions", "get", found[1], "-s", service.address)


def test_plan_marks_the_choice(service: Service, swaa: Swaa, document: Path) -> None:
    out, error = swaa("plan", str(document), "--sla", "quality", "--recipe", "sliding", "-s", service.address)
    assert error == ""
    assert re.search(r"\* +\W+ sliding", out), out
    assert out.strip().splitlines()[-1] == "sliding: asked for by x-swaa-recipe"
    out, _ = swaa("plan", "--prompt-tokens", "3000", "-s", service.address)
    assert "3,000 prompt tokens after 0 of history; class balanced" in out


def test_recipes_and_info(service: Service, swaa: Swaa) -> None:
    out, _ = swaa("recipes", "-s", service.address)
    for name in ("full", "sliding", "interleaved", "quality", "balanced", "interactive"):
        assert re.search(rf"\b{name}\b", out)
    out, _ = swaa("info", "-s", service.address)
    assert "smollm2" in out
    assert "8192" in out


def test_the_server_may_come_from_the_environment(service: Service) -> None:
    ran = subprocess.run(
        (*SWAA, "info"), env=environment(SWAA_LISTEN=service.address), capture_output=True, timeout=120, check=True
    )
    assert b"smollm2" in ran.stdout


def test_no_server(fail_here: Fail, document: Path) -> None:
    [error] = fail_here(1, "generate", str(document), "-s", "127.0.0.1:1").strip().splitlines()
    assert error.startswith("UNAVAILABLE: ")
    assert "127.0.0.1:1" in error


def test_what_the_service_refuses(service: Service) -> None:
    error = fail("generate", "--sla", "gold", "-s", service.address, stdin=b"The ship")
    assert error.startswith("INVALID_ARGUMENT: x-swaa-sla is 'gold': unknown SLA class; known are ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("generate", "--ttft-ms", "-1"), "INVALID_ARGUMENT: x-slo-ttft-ms is '-1.0': must be a number"),
        (("generate", "--max-tokens", "0"), "INVALID_ARGUMENT: max_tokens is 0: must be at least 1"),
        (("generate", "--timeout-s", "0.001"), "DEADLINE_EXCEEDED: "),
        (("plan", "--strict", "--ttft-ms", "0.001"), "RESOURCE_EXHAUSTED: strict: no recipe ever meets it here; "),
        (("sessions", "list", "--limit", "0"), "INVALID_ARGUMENT: limit is 0: must be in 1..1000"),
        (("generate", "--sla", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"), "INVALID_ARGUMENT: x-swaa-sla is "),
        (("generate", "--session", "a\nb"), "INVALID_ARGUMENT: x-swaa-session is "),
    ],
)
def test_every_refusal_is_one_line(service: Service, fail_here: Fail, arguments: tuple[str, ...], said: str) -> None:
    [line] = fail_here(1, *arguments, "-s", service.address, stdin=b"The ship").strip().splitlines()
    assert line.startswith(said)


@pytest.mark.parametrize("value", ["[/red]", "[bold]x", "[red"])
def test_what_looks_like_markup_is_shown_as_it_is(service: Service, fail_here: Fail, value: str) -> None:
    error = fail_here(1, "generate", "--sla", value, "-s", service.address, stdin=b"The ship")
    assert f"x-swaa-sla is '{value}'" in error


def test_text_that_is_not_utf_8_is_not_sent() -> None:
    ran = run_swaa("generate", "-s", "127.0.0.1:1", stdin=b"ab\xff")
    assert ran.returncode == 2
    assert b"the prompt is not UTF-8 (byte 2)" in ran.stderr
    assert ran.stdout == b""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("generate", "/nowhere/at/all"), "cannot read /nowhere/at/all: No such file or directory"),
        (("sessions", "import", "/nowhere/at/all"), "cannot read /nowhere/at/all: No such file or directory"),
        (("sessions", "export", "a", "/nowhere/at/all"), "cannot write /nowhere/at/all: No such file or directory"),
        (("generate", "--max-tokens", "many"), "Invalid value for '--max-tokens'"),
        (("bake",), "No such command 'bake'"),
    ],
)
def test_what_the_command_line_gets_wrong(fail_here: Fail, arguments: tuple[str, ...], said: str) -> None:
    assert said in " ".join(re.sub("[│╭╮╰╯─]", " ", fail_here(2, *arguments)).split())


def test_serve_refuses_settings_that_are_none() -> None:
    ran = subprocess.run(
        (*SWAA, "serve"), env=environment(SWAA_KV_MEMORY="1"), capture_output=True, timeout=120, check=False
    )
    assert ran.returncode == 1
    [line] = ran.stderr.decode().strip().splitlines()
    assert line.startswith("InvalidRequest: SWAA_KV_MEMORY is '(not shown)': unknown setting; known are ")
    assert fail("serve", "--kv-memory-mib", "0").startswith("setting kv_memory_mib: ")


def test_a_service_whose_store_does_not_answer_does_not_start(fail_here: Fail) -> None:
    url = "redis://:secret@127.0.0.1:1/0"
    [line] = fail_here(1, "serve", "--listen", "127.0.0.1:0", "--redis-url", url).strip().splitlines()
    assert line.startswith("StoreUnavailable: session store: cannot be reached: ")
    assert "127.0.0.1:1" in line
    assert "secret" not in line
