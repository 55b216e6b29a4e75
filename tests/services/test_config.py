"""Settings: environment, flags over it, and nothing that is not known."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.config import load_config
from swaa_runtime.errors import InvalidRequest


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SWAA_")]:
        monkeypatch.delenv(name)


def test_defaults_suit_a_laptop() -> None:
    config = load_config()
    assert (config.model, config.device, config.listen) == ("smollm2", "cpu", "127.0.0.1:50051")
    assert config.http_listen == "127.0.0.1:8080"
    assert config.redis_url is None
    assert config.session_ttl_s == 86400


def test_a_replica_is_reached_from_this_machine_only_until_told_otherwise() -> None:
    config = load_config()
    assert (config.replicas, config.replica_host, config.replica_port) == (None, "127.0.0.1", 0)


def test_flags_go_over_the_environment_and_absent_flags_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAA_LISTEN", "0.0.0.0:1")
    monkeypatch.setenv("SWAA_KV_MEMORY_MIB", "64")
    config = load_config(listen="127.0.0.1:2", kv_memory_mib=None, state_dir=Path("here"))
    assert (config.listen, config.kv_memory_mib, config.state_dir) == ("127.0.0.1:2", 64, Path("here"))


def test_http_is_turned_off_by_an_empty_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAA_HTTP_LISTEN", "")
    assert load_config().http_listen == ""
    assert load_config(http_listen="127.0.0.1:0").http_listen == "127.0.0.1:0"


def test_an_unknown_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAA_KV_MEMORY", "64")
    with pytest.raises(
        InvalidRequest, match=r"SWAA_KV_MEMORY is '\(not shown\)': unknown setting; known are .*SWAA_KV_MEMORY_MIB"
    ):
        load_config()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KV_MEMORY_MIB", "0"),
        ("KV_MEMORY_MIB", "much"),
        ("SESSION_TTL_S", "0"),
        ("MAX_RUNNING", "0"),
        ("DEVICE", "tpu"),
        ("DTYPE", "int4"),
        ("ATTENTION_BACKEND", "magic"),
        ("DENSE_ATTENTION", "magic"),
        ("KV_DTYPE", "int4"),
        ("LOG_LEVEL", "loud"),
        ("DRAIN_S", "-1"),
        ("REPLICA_PORT", "65536"),
        ("REPLICA_PORT", "-1"),
    ],
)
def test_a_value_out_of_bounds_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"SWAA_{name}", value)
    with pytest.raises(ValidationError) as caught:
        load_config()
    assert [problem["loc"] for problem in caught.value.errors()] == [(name.lower(),)]


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(ValidationError):
        load_config(window=4)


def test_a_kv_pool_of_auto_is_one_of_no_given_size(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_config().kv_memory_mib is None
    monkeypatch.setenv("SWAA_KV_MEMORY_MIB", "auto")
    assert load_config().kv_memory_mib is None
