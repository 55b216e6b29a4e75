"""The commands for keys, and where the other commands have theirs from."""

from __future__ import annotations

import contextlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from services.cli.asking import api_key
from services.cli.keys import app, parse_expiry
from services.gateway.auth.key_file import read_key_ring, read_keys
from services.gateway.identity import Identity
from swaa_runtime.errors import InvalidRequest

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def run(file: Path, *arguments: str) -> str:
    """What a command writes to standard output. Raises what it raises."""
    done = CliRunner().invoke(app, [*arguments, "--file", str(file)], env={"COLUMNS": "200"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_key_from_new_to_revoked(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    credential = run(file, "new", "--tenant", "acme", "--name", "ci", "--expires", "90d").strip()
    operator = run(file, "new", "--tenant", "ops", "--operator").strip()
    kept, other = read_keys(file)
    now = datetime.now(UTC)
    assert read_key_ring(file).identify(credential, now) == (Identity("acme", kept.id), "")
    assert read_key_ring(file).identify(operator, now) == (Identity("ops", other.id, operator=True), "")
    assert credential[-64:] not in file.read_text()
    assert run(file, "revoke", kept.id) == f"revoked {kept.id}\n"
    assert read_key_ring(file).identify(credential, now) == (None, "revoked")
    first_revoked = read_keys(file)[0]
    run(file, "revoke", kept.id)
    assert read_keys(file)[0] == first_revoked
    listed = run(file, "list")
    for text in (kept.id, "acme", "revoked", "ci", other.id, "ops", "active", "never", "operator"):
        assert text in listed
    assert kept.digest not in listed


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    run(file, "new", "--tenant", "acme")
    before = file.read_bytes()
    for arguments in (("new", "--tenant", "a b"), ("new", "--tenant", "a", "--expires", "1x"), ("revoke", "0" * 12)):
        with pytest.raises(InvalidRequest, match=r"tenant is|expires is|key_id is"):
            run(file, *arguments)
    with pytest.raises(InvalidRequest, match="must be a readable file"):
        run(tmp_path / "none.json", "list")
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("12h", NOW + timedelta(hours=12)),
        ("90d", NOW + timedelta(days=90)),
        ("2027-01-31T00:00:00Z", datetime(2027, 1, 31, tzinfo=UTC)),
        ("2027-01-31T02:00:00+02:00", datetime(2027, 1, 31, tzinfo=UTC)),
    ],
)
def test_when_a_key_expires(text: str, at: datetime) -> None:
    assert parse_expiry(text, NOW) == at


@pytest.mark.parametrize("text", ["", "0d", "soon", "1w", "-1d", "2027-01-31", "2020-01-01T00:00:00Z", "999999999d"])
def test_what_is_no_time_to_come(text: str) -> None:
    with pytest.raises(InvalidRequest, match="expires is"):
        parse_expiry(text, NOW)


@given(st.text(max_size=20))
def test_any_text_is_a_time_to_come_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidRequest):
        assert parse_expiry(text, NOW) > NOW


def test_where_commands_have_their_key_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SWAA_")]:
        monkeypatch.delenv(name)
    assert api_key() is None
    file = tmp_path / "key"
    file.write_text("of a file\n")
    monkeypatch.setenv("SWAA_API_KEY_FILE", str(file))
    assert api_key() == "of a file"
    monkeypatch.setenv("SWAA_API_KEY", "a-secret")
    with pytest.raises(InvalidRequest, match="give either it or SWAA_API_KEY") as caught:
        api_key()
    assert "a-secret" not in str(caught.value)
    monkeypatch.delenv("SWAA_API_KEY_FILE")
    assert api_key() == "a-secret"
    monkeypatch.delenv("SWAA_API_KEY")
    for wrong in (tmp_path / "none", tmp_path):
        monkeypatch.setenv("SWAA_API_KEY_FILE", str(wrong))
        with pytest.raises(InvalidRequest, match="must be a readable file"):
            api_key()
