"""What may be open to other machines, and what a service says before it refuses."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from services.config import load_config
from services.exposure import door_files, is_on_this_machine, replica_files
from swaa_runtime.errors import InvalidRequest

TLS: dict[str, Any] = {"tls_cert_file": Path("c"), "tls_key_file": Path("k")}
MUTUAL: dict[str, Any] = {**TLS, "tls_client_ca_file": Path("a")}
REPLICA: dict[str, Any] = {f"replica_tls_{name}_file": Path(name) for name in ("cert", "key", "ca")}


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("[::1]", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104
        ("::", False),
        ("[::]", False),
        ("::ffff:10.0.0.1", False),
        ("10.0.0.1", False),
        ("", False),
        ("gateway", False),
        ("localhost.example.org", False),
    ],
)
def test_what_is_on_this_machine(host: str, here: bool) -> None:
    assert is_on_this_machine(host) is here


@pytest.mark.parametrize("setting", ["listen", "http_listen"])
@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", ":1", "gateway.example.org:1"])
def test_a_public_door_needs_tls_and_clients_that_are_known(setting: str, address: str) -> None:
    public = {setting: address}
    with pytest.raises(InvalidRequest, match=rf"^{setting} is '.*needs TLS \(.*\) and clients that show who they are"):
        door_files(load_config(**public))
    with pytest.raises(InvalidRequest, match=f"^{setting} is '.*which needs clients that show who they are"):
        door_files(load_config(**public, **TLS))
    files = door_files(load_config(**public, **MUTUAL))
    assert files is not None
    assert files.ca == Path("a")


def test_who_has_a_credential_needs_no_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.config.ServeConfig.authenticates", True)
    assert door_files(load_config(listen="0.0.0.0:1", **TLS)) is not None
    with pytest.raises(InvalidRequest, match=r"which needs TLS \(tls_cert_file, tls_key_file\), or insecure_public"):
        door_files(load_config(listen="0.0.0.0:1"))


def test_this_machine_needs_nothing_and_no_http_is_no_door() -> None:
    assert door_files(load_config()) is None
    assert door_files(load_config(listen="[::1]:0", http_listen="localhost:0")) is None
    assert door_files(load_config(http_listen="")) is None
    files = door_files(load_config(**TLS))
    assert files is not None
    assert files.paths == (Path("c"), Path("k"))


def test_a_public_replica_needs_tls_at_both_ends() -> None:
    assert replica_files(load_config()) is None
    with pytest.raises(InvalidRequest, match=r"^replica_host is '10\.0\.0\.9': .*needs TLS at both ends"):
        replica_files(load_config(replica_host="10.0.0.9"))
    files = replica_files(load_config(replica_host="10.0.0.9", **REPLICA))
    assert files is not None
    assert files.paths == (Path("cert"), Path("key"), Path("ca"))
    with pytest.raises(InvalidRequest, match=r"^replica_tls_ca_file is None"):
        replica_files(load_config(**{**REPLICA, "replica_tls_ca_file": None}))


def test_who_does_without_is_warned_of_each_door(caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(listen="0.0.0.0:1", http_listen="0.0.0.0:2", replica_host="10.0.0.9", insecure_public=True)
    with caplog.at_level(logging.WARNING):
        assert door_files(config) is None
        assert replica_files(config) is None
    said = [record.getMessage() for record in caplog.records]
    assert [text.split()[1] for text in said] == ["listen", "http_listen", "replica_host"]
    assert all(text.startswith("INSECURE: ") for text in said)
