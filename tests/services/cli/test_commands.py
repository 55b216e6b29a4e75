"""The commands that talk to a service, on a tiny one in this process. What they print is `tests/walk/test_cli`'s."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.cli.main import main
from tests.services.tiny_service import TinyService, tiny_service_thread

Swaa = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def service() -> Iterator[TinyService]:
    with tiny_service_thread() as running:
        yield running


@pytest.fixture
def swaa(service: TinyService, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Swaa:
    """Runs a command; what it says on standard output and standard error, after its exit code has been checked."""

    def run(*arguments: str, stdin: str = "", code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["swaa", *arguments, "-s", service.address])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        assert (caught.value.code or 0) == code, captured.err
        return captured.out, captured.err

    return run


def test_a_session_from_its_first_turn_to_its_end(swaa: Swaa, tmp_path: Path) -> None:
    out, error = swaa(
        "generate", "-q", "who?", "--recipe", "full", "--max-tokens", "5", "--session", "new", stdin="a log"
    )
    assert re.fullmatch(r".{5}\n", out)
    assert "recipe full for class balanced (asked for by x-swaa-recipe)" in error
    found = re.search(r"session (\w+) saved as version 1 .*history none", error)
    assert found, error
    session_id = found[1]
    _, error = swaa("generate", "--max-tokens", "3", "--session", session_id, stdin="and when?")
    assert f"session {session_id} saved as version 2" in error

    out, _ = swaa("sessions", "list")
    assert session_id in out
    out, _ = swaa("sessions", "get", session_id)
    assert re.search(rf"{session_id}\W+2\W+2\W+\d+\W+\w+", out), out
    out, _ = swaa("sessions", "fork", session_id)
    [copy] = set(re.findall(r"\b[0-9a-f]{32}\b", out))
    file = tmp_path / "chat.swaa"
    out, _ = swaa("sessions", "export", copy, str(file))
    assert out == f"exported {copy}: {file.stat().st_size:,} bytes\n"
    out, _ = swaa("sessions", "import", str(file))
    assert re.search(r"\b[0-9a-f]{32}\W+1\W+2\W+\d+", out), out
    out, _ = swaa("sessions", "delete", session_id)
    assert out == f"deleted {session_id}\n"
    _, error = swaa("sessions", "get", session_id, code=1)
    assert error == f"NOT_FOUND: no session '{session_id}'\n"


def test_plans_recipes_and_info(swaa: Swaa) -> None:
    out, error = swaa("plan", "--sla", "quality", "--recipe", "sliding", stdin="a log")
    assert error == ""
    assert re.search(r"\* +\W+ sliding", out), out
    out, _ = swaa("plan", "--prompt-tokens", "300", "-q", "is not looked at")
    assert "300 prompt tokens after 0 of history; class balanced" in out
    out, _ = swaa("recipes")
    for name in ("full", "sliding", "interleaved", "quality", "balanced", "interactive"):
        assert re.search(rf"\b{name}\b", out)
    out, _ = swaa("info")
    assert "tiny" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("generate", "--ttft-ms", "-1"), "INVALID_ARGUMENT: x-slo-ttft-ms is '-1.0': must be a number"),
        (("generate", "--max-tokens", "0"), "INVALID_ARGUMENT: max_tokens is 0: must be at least 1"),
        (("generate", "--max-tokens", "-1"), "INVALID_ARGUMENT: max_tokens is -1: "),
        (("generate", "--sla", "[red]gold"), "INVALID_ARGUMENT: x-swaa-sla is '[red]gold': unknown SLA class"),
        (("generate", "--sla", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"), "INVALID_ARGUMENT: x-swaa-sla is "),
        (("generate", "--timeout-s", "0"), "INVALID_ARGUMENT: timeout_s is 0.0: must be above 0"),
        (("sessions", "list", "--limit", "0"), "INVALID_ARGUMENT: limit is 0: must be in 1..1000"),
    ],
)
def test_every_refusal_is_one_line(swaa: Swaa, arguments: tuple[str, ...], said: str) -> None:
    out, error = swaa(*arguments, stdin="a log", code=1)
    [line] = error.strip().splitlines()
    assert line.startswith(said)
    assert out == ""


def test_a_service_for_everybody_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["swaa", "serve", "--listen", "0.0.0.0:0", "--model", "not even looked for"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("InvalidRequest: listen is '0.0.0.0:0': can be reached from other machines, which needs TLS")
