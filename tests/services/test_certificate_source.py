"""A certificate that changes while it is served: good ones are taken over, bad ones are not."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from services.certificate_source import CertificateSource, watched_certificates
from services.telemetry.certificate_metrics import CertificateMetrics
from swaa_runtime.errors import InvalidRequest
from tests.services.tiny_service import until

from .certificates import CertificateFolder, issued_in, replace


@pytest.fixture
def made(tmp_path: Path) -> CertificateFolder:
    return issued_in(tmp_path)


def refreshed(source: CertificateSource) -> CertificateSource:
    asyncio.run(source.refresh())
    return source


def test_a_changed_certificate_is_read_again_and_an_unchanged_one_is_not(made: CertificateFolder) -> None:
    source = CertificateSource(made.files())
    first = source.current
    assert refreshed(source).current is first
    made.issue()
    assert refreshed(source).current.chain == made.cert.read_bytes()
    assert source.current.key == made.key.read_bytes()


def test_authorities_are_read_again_too(made: CertificateFolder) -> None:
    source = CertificateSource(made.files(asks_clients=True))
    other = CertificateFolder(made.folder)
    replace(made.ca, other.authority.cert_pem.bytes())
    assert refreshed(source).current.authorities == other.authority.cert_pem.bytes()


def test_a_bad_certificate_keeps_the_old_one_and_is_told_once(
    made: CertificateFolder, caplog: pytest.LogCaptureFixture
) -> None:
    source = CertificateSource(made.files())
    first, key = source.current, made.key.read_bytes()
    replace(made.key, key[:50])
    for _ in range(3):
        assert refreshed(source).current is first
    assert "tls_key_file is" in source.error
    assert source.num_failures == 1
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert key[:50].decode() not in caplog.text
    made.issue()
    assert refreshed(source).error == ""
    assert source.current.chain == made.cert.read_bytes()


def test_a_certificate_that_came_too_early_is_taken_when_its_time_has_come(
    made: CertificateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = CertificateSource(made.files())
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    made.write(made.authority.issue_cert("127.0.0.1", not_before=tomorrow, not_after=tomorrow + timedelta(days=9)))
    assert "is not valid before" in refreshed(source).error

    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return tomorrow + timedelta(hours=1)

    monkeypatch.setattr("services.tls.datetime", Later)
    assert refreshed(source).error == ""
    assert source.current.chain == made.cert.read_bytes()


def test_it_is_watched(made: CertificateFolder) -> None:
    async def run() -> None:
        async with watched_certificates(None) as none:
            assert none is None
        async with watched_certificates(made.files()) as source:
            assert source is not None
            made.issue()
            await until(lambda: source.current.chain == made.cert.read_bytes())

    asyncio.run(run())


def test_a_service_does_not_start_with_a_bad_one(made: CertificateFolder) -> None:
    made.cert.write_bytes(b"")
    with pytest.raises(InvalidRequest, match="tls_cert_file"):
        CertificateSource(made.files())


def test_metrics_tell_when_it_ends_and_that_a_new_one_was_not_used(made: CertificateFolder) -> None:
    registry, source = CollectorRegistry(), CertificateSource(made.files())
    CertificateMetrics(registry, {"clients": source, "replicas": None})

    def value(name: str, wire: str = "clients") -> float | None:
        return registry.get_sample_value(name, {"wire": wire})

    assert value("swaa_tls_certificate_expiry_timestamp_seconds") == source.current.expires_at_s
    assert value("swaa_tls_certificate_expiry_timestamp_seconds", "replicas") is None
    assert (value("swaa_tls_reload_error"), value("swaa_tls_reload_failures_total")) == (0, 0)
    replace(made.cert, b"")
    refreshed(source)
    assert (value("swaa_tls_reload_error"), value("swaa_tls_reload_failures_total")) == (1, 1)
