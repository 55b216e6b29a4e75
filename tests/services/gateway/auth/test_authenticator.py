"""From a request's headers to an identity, and one answer to all that is wrong."""

from __future__ import annotations

import asyncio
import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.config import load_config
from services.errors import Unauthenticated
from services.gateway.auth.api_keys import new_key
from services.gateway.auth.authenticator import Authenticator, Credentials, authenticator_of
from services.gateway.auth.file_metrics import FileMetrics
from services.gateway.auth.key_file import editing
from services.gateway.identity import ANONYMOUS
from services.telemetry.metrics import AuthenticationMetrics
from swaa_runtime.errors import InvalidRequest

from .signer import AUDIENCE, ISSUER, public_pem, token

NOW = datetime.now(UTC)
TOKENS: dict[str, Any] = {"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}


class Made:
    """An authenticator of files in a folder, and keys of theirs."""

    def __init__(self, folder: Path, *, tokens: bool = True) -> None:
        self.path = folder / "keys.json"
        self.good, kept = new_key("acme", NOW)
        self.expired, late = new_key("acme", NOW, expires_at=NOW - timedelta(hours=1))
        self.revoked, away = new_key("acme", NOW)
        self.unknown, _ = new_key("acme", NOW)
        with editing(self.path) as keys:
            keys += [kept, late, away.model_copy(update={"revoked_at": NOW})]
        public = folder / "public.pem"
        public.write_bytes(public_pem("OKP"))
        self.registry = CollectorRegistry()
        more = {"jwt_keys_file": public, **TOKENS} if tokens else {}
        config = load_config(api_keys_file=self.path, **more)
        self.authenticator: Authenticator = authenticator_of(config, AuthenticationMetrics(self.registry))

    def refusal(self, *headers: tuple[str, str | bytes]) -> Unauthenticated:
        with pytest.raises(Unauthenticated) as caught:
            self.authenticator.identify(headers)
        return caught.value

    def counted(self, reason: str) -> float | None:
        return self.registry.get_sample_value("swaa_unauthenticated_total", {"reason": reason})


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    for name in [name for name in os.environ if name.startswith("SWAA_")]:
        monkeypatch.delenv(name)
    return Made(tmp_path)


@pytest.mark.parametrize("value", ["Bearer {}", "bearer {}", "BEARER   {} "])
def test_keys_and_tokens_are_taken(made: Made, value: str) -> None:
    for credential in (made.good, token()):
        given = value.format(credential)
        for header in (given, given.encode()):
            others = [("x-swaa-tenant", "rival"), ("x-swaa-session", "new")]
            assert made.authenticator.identify([*others, ("authorization", header)]).tenant == "acme"


def test_all_that_is_wrong_is_told_alike_and_counted_apart(made: Made) -> None:
    wrong = {
        "missing": [],
        "unknown": [("authorization", f"Bearer {made.unknown}")],
        "expired": [("authorization", f"Bearer {made.expired}")],
        "revoked": [("authorization", f"Bearer {made.revoked}")],
        "token": [("authorization", f"Bearer {token(exp=1)}")],
        "malformed": [("authorization", f"Basic {made.good}")],
    }
    refusals = {reason: made.refusal(*headers) for reason, headers in wrong.items()}
    assert {reason: error.reason for reason, error in refusals.items()} == {reason: reason for reason in wrong}
    assert len({str(error) for error in refusals.values()}) == 1
    assert {reason: made.counted(reason) for reason in wrong} == dict.fromkeys(wrong, 1.0)


def test_what_is_no_bearer_is_malformed(made: Made) -> None:
    good = ("authorization", f"Bearer {made.good}")
    long = ("authorization", "Bearer " + "a" * 100_000)
    for headers in (
        [good, good],
        [("authorization", "")],
        [("authorization", "Bearer ")],
        [("authorization", made.good)],
        [long],
    ):
        assert made.refusal(*headers).reason == "malformed"


def test_keys_alone_take_no_tokens(tmp_path: Path) -> None:
    made = Made(tmp_path, tokens=False)
    assert made.refusal(("authorization", f"Bearer {token()}")).reason == "unknown"
    assert made.authenticator.identify([("authorization", f"Bearer {made.good}")]).tenant == "acme"


def test_without_files_everybody_is_one_tenant(made: Made) -> None:
    config = load_config()
    assert not config.authenticates
    everybody = authenticator_of(config, AuthenticationMetrics(CollectorRegistry()))
    for headers in ([], [("authorization", "Bearer whatever")], [("authorization", "x"), ("authorization", "y")]):
        assert everybody.identify(headers) == ANONYMOUS


def test_a_key_that_is_revoked_is_refused_once_the_file_is_read_again(made: Made) -> None:
    with editing(made.path) as keys:
        keys[0] = keys[0].model_copy(update={"revoked_at": NOW})
    header = ("authorization", f"Bearer {made.good}")
    assert made.authenticator.identify([header]).tenant == "acme"
    refresh(made)
    assert made.refusal(header).reason == "revoked"


def refresh(made: Made) -> None:
    assert isinstance(made.authenticator, Credentials)
    for file in (made.authenticator._keys, made.authenticator._tokens):
        assert file is not None
        asyncio.run(file.refresh())


@pytest.mark.parametrize("content", ['{"keys": [{"digest": "swaa_secret"}]}', "", None])
def test_a_bad_file_keeps_the_old_keys_and_says_so(
    made: Made, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    good = made.path.read_text()
    FileMetrics(made.registry, made.authenticator)
    header = ("authorization", f"Bearer {made.good}")
    error = {"file": "api_keys_file"}
    with caplog.at_level(logging.INFO):
        made.path.unlink() if content is None else made.path.write_text(content)
        refresh(made)
        refresh(made)
        assert made.authenticator.identify([header]).tenant == "acme"
        assert made.registry.get_sample_value("swaa_credentials_error", error) == 1
        assert made.registry.get_sample_value("swaa_credentials_error", {"file": "jwt_keys_file"}) == 0
        made.path.write_text(good)
        refresh(made)
    assert made.registry.get_sample_value("swaa_credentials_error", error) == 0
    assert sum("the new file is not used" in line for line in caplog.messages) == 1, "once"
    assert "secret" not in caplog.text
    assert made.good[-64:] not in caplog.text


def test_a_service_does_not_start_with_a_bad_file(tmp_path: Path) -> None:
    metrics = AuthenticationMetrics(CollectorRegistry())
    with pytest.raises(InvalidRequest, match="must be a readable file of API keys"):
        authenticator_of(load_config(api_keys_file=tmp_path / "none"), metrics)
    with pytest.raises(InvalidRequest, match="must be a readable file with public keys"):
        authenticator_of(load_config(jwt_keys_file=tmp_path / "none", **TOKENS), metrics)
    with pytest.raises(InvalidRequest, match="jwt_issuer is ''"):
        authenticator_of(load_config(jwt_keys_file=tmp_path / "none"), metrics)
