"""What of a certificate's files is checked, and what is said of those that will not do."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from services.tls import files_of, read_certificate, server_context
from swaa_runtime.errors import InvalidRequest

from .certificates import CertificateFolder, issued_in

A, B, C = Path("a"), Path("b"), Path("c")


@pytest.fixture
def made(tmp_path: Path) -> CertificateFolder:
    return issued_in(tmp_path)


def refused(made: CertificateFolder) -> str:
    with pytest.raises(InvalidRequest) as caught:
        read_certificate(made.files(asks_clients=True))
    return str(caught.value)


def test_all_or_nothing() -> None:
    assert files_of("tls", None, None, "tls_client_ca_file", None) is None
    files = files_of("tls", A, B, "tls_client_ca_file", None)
    assert files is not None
    assert files.paths == (A, B)
    both_ends = files_of("replica_tls", A, B, "replica_tls_ca_file", C, ca_needed=True)
    assert both_ends is not None
    assert both_ends.paths == (A, B, C)


@pytest.mark.parametrize(
    ("cert", "key", "ca", "ca_needed", "missing"),
    [
        (A, None, None, False, "tls_key_file"),
        (None, B, None, False, "tls_cert_file"),
        (None, None, C, False, "tls_cert_file"),
        (A, B, None, True, "tls_ca_file"),
    ],
)
def test_half_a_pair_is_refused(
    cert: Path | None, key: Path | None, ca: Path | None, ca_needed: bool, missing: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"^{missing} is None: must be set"):
        files_of("tls", cert, key, "tls_ca_file", ca, ca_needed)


@pytest.mark.parametrize("key_type", list(trustme.KeyType))
def test_a_good_certificate_is_read(made: CertificateFolder, key_type: trustme.KeyType) -> None:
    issued = made.issue(key_type=key_type)
    certificate = read_certificate(made.files())
    assert certificate.key == issued.private_key_pem.bytes()
    assert certificate.authorities is None
    assert certificate.expires_at_s > datetime.now(UTC).timestamp()
    assert read_certificate(made.files(asks_clients=True)).authorities == made.authority.cert_pem.bytes()


def test_a_bundle_of_authorities_may_have_words_between_them(made: CertificateFolder) -> None:
    other = trustme.CA()
    text = "# Société générale\n".encode()
    made.ca.write_bytes(text + made.authority.cert_pem.bytes() + text + other.cert_pem.bytes())
    context = server_context(read_certificate(made.files(asks_clients=True)))
    assert len(context.get_ca_certs()) == 2


def test_a_key_is_never_shown(made: CertificateFolder) -> None:
    assert "PRIVATE" not in repr(read_certificate(made.files()))


def test_a_missing_file_is_named(made: CertificateFolder) -> None:
    for setting, path in (("tls_client_ca_file", made.ca), ("tls_key_file", made.key), ("tls_cert_file", made.cert)):
        path.unlink()
        assert refused(made) == f"{setting} is {str(path)!r}: cannot be read: No such file or directory"


def test_another_certificates_key_is_refused(made: CertificateFolder) -> None:
    made.key.write_bytes(made.authority.issue_cert("127.0.0.1").private_key_pem.bytes())
    assert refused(made) == f"tls_key_file is {str(made.key)!r}: is not the key of the certificate in {made.cert}"


def test_an_expired_certificate_is_refused_and_one_that_is_too_early(made: CertificateFolder) -> None:
    now = datetime.now(UTC)
    early = now + timedelta(days=1)
    made.write(made.authority.issue_cert("127.0.0.1", not_before=now - timedelta(days=2), not_after=now))
    assert "tls_cert_file is" in refused(made)
    assert "expired" in refused(made)
    made.write(made.authority.issue_cert("127.0.0.1", not_before=early, not_after=early + timedelta(days=1)))
    assert "is not valid before" in refused(made)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cert", "tls_cert_file is .*: must have certificates, as PEM"),
        ("key", "tls_key_file is .*: must have a private key, as PEM"),
        ("ca", "tls_client_ca_file is .*: must have certificates, as PEM"),
    ],
)
def test_what_is_no_pem_or_half_of_one_is_refused(made: CertificateFolder, name: str, said: str) -> None:
    path: Path = getattr(made, name)
    for content in (b"", b"nonsense", path.read_bytes()[:100]):
        path.write_bytes(content)
        with pytest.raises(InvalidRequest, match=said):
            read_certificate(made.files(asks_clients=True))


def test_an_encrypted_key_is_refused(made: CertificateFolder) -> None:
    key = load_pem_private_key(made.key.read_bytes(), None)
    secret = BestAvailableEncryption(b"horse")
    made.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret))
    assert "is encrypted" in refused(made)


def test_a_server_takes_nothing_older_than_tls_1_2_and_asks_clients_only_if_told(made: CertificateFolder) -> None:
    context = server_context(read_certificate(made.files()))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_NONE
    assert server_context(read_certificate(made.files(asks_clients=True))).verify_mode == ssl.CERT_REQUIRED
