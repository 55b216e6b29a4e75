"""The file of keys: whole or not at all, and silent about what is in it."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from services.gateway.auth.api_keys import new_key
from services.gateway.auth.key_file import editing, read_key_ring, read_keys
from swaa_runtime.errors import InvalidRequest

NOW = datetime(2026, 11, 26, tzinfo=UTC)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    credential, kept = new_key("acme", NOW, "ci", NOW, operator=True)
    with editing(path) as keys:
        keys.append(kept)
    assert read_keys(path) == [kept]
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_key_ring(path).identify(credential, NOW)[1] == "expired"


def test_a_change_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with editing(path) as keys:
        keys.append(new_key("acme", NOW)[1])
    before = path.read_bytes()
    with pytest.raises(IndexError), editing(path) as keys:
        keys.pop(0), keys.pop(0)
    assert path.read_bytes() == before


def test_changes_at_the_same_time_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"

    def add() -> None:
        for _ in range(5):
            with editing(path) as keys:
                keys.append(new_key("acme", NOW)[1])

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_keys(path)) == 20


def test_a_link_stays_one(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "keys.json"
    real.write_text('{"keys": []}')
    link.symlink_to(real)
    with editing(link) as keys:
        keys.append(new_key("acme", NOW)[1])
    assert link.is_symlink()
    assert len(read_keys(real)) == 1


def entry(**changes: Any) -> dict[str, Any]:
    kept = json.loads(new_key("acme", NOW)[1].model_dump_json())
    return {name: value for name, value in {**kept, **changes}.items() if value != "absent"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "file is"),
        ("[]", "file is"),
        ("{}", "keys is"),
        ('{"keys": [], "more": 1}', "more is"),
        (json.dumps({"keys": [entry(digest="swaa_very_secret")]}), "keys.0.digest is"),
        (json.dumps({"keys": [entry(tenant="a b")]}), "keys.0.tenant is"),
        (json.dumps({"keys": [entry(), entry(id="absent")]}), "keys.1.id is"),
        (json.dumps({"keys": [entry(expires_at="2026-01-01T00:00:00")]}), "keys.0.expires_at is"),
        (json.dumps({"keys": [entry(revoked="yes")]}), "keys.0.revoked is"),
        (json.dumps({"keys": [entry(id="0" * 12), entry(id="0" * 12)]}), "keys is '000000000000': is there twice"),
    ],
)
def test_what_is_wrong_is_named_and_not_shown(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(InvalidRequest) as caught:
        read_keys(path)
    assert told in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="must be a readable file of API keys"):
        read_keys(tmp_path / "none.json")
    with pytest.raises(InvalidRequest, match="must be a file that can be written"), editing(tmp_path / "no" / "k.json"):
        pass
