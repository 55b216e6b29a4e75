"""Certificates: where they are, and what of them is checked before anybody sees them. Files are PEM.

A `Certificate` that exists can be served: its key belongs to it, and it was valid when it was read.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from swaa_runtime.errors import InvalidRequest

HTTP_ALPN = ("http/1.1",)
"""What the HTTP server speaks; gRPC says h2 by itself."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where a certificate, its key and the authorities of the other side are.

    Attributes:
        setting: how the settings of the three start, for messages: tls or replica_tls.
        ca_setting: the name of the third.
        ca: who the other side's certificates must be from; None: the other side needs none.
    """

    setting: str
    ca_setting: str
    cert: Path
    key: Path
    ca: Path | None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        return tuple(path for path in (self.cert, self.key, self.ca) if path is not None)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A checked certificate.

    Attributes:
        chain: PEM, the certificate first, then those that lead to its authority.
        key: PEM, of the certificate.
        authorities: PEM, who the other side's certificates must be from; None: the other side needs none.
        expires_at_s: when it ends to be valid, in seconds since 1970.
    """

    chain: bytes
    key: bytes = field(repr=False)
    authorities: bytes | None
    expires_at_s: float


def files_of(
    setting: str, cert: Path | None, key: Path | None, ca_setting: str, ca: Path | None, ca_needed: bool = False
) -> TlsFiles | None:
    """The files of a certificate, or None if no certificate is set.

    Args:
        setting: how the names of the settings start: tls or replica_tls.
        ca_setting: the name of the setting that `ca` is of.
        ca_needed: whether certificate and key are of no use without `ca`.

    Raises:
        InvalidRequest: some of them are set, and others are missing.
    """
    if cert is None and key is None and ca is None:
        return None
    if cert is None:
        raise InvalidRequest(f"{setting}_cert_file", None, "must be set, as others of this certificate's files are")
    if key is None:
        raise InvalidRequest(f"{setting}_key_file", None, f"must be set, as {setting}_cert_file is")
    if ca is None and ca_needed:
        raise InvalidRequest(ca_setting, None, f"must be set, as {setting}_cert_file is")
    ca = None if ca is None else ca.expanduser()
    return TlsFiles(setting, ca_setting, cert.expanduser(), key.expanduser(), ca)


def read_certificate(files: TlsFiles) -> Certificate:
    """Read the files and check them. Nothing of the key is in any message.

    Raises:
        InvalidRequest: a file cannot be read or is not PEM, the key is encrypted or another certificate's, or a
            certificate is not valid now.
    """
    cert_setting, key_setting = f"{files.setting}_cert_file", f"{files.setting}_key_file"
    chain, key = _read(cert_setting, files.cert), _read(key_setting, files.key)
    first = _certificates(cert_setting, files.cert, chain)[0]
    _check_time(cert_setting, files.cert, first)
    _check_key(files, key, first)
    authorities = None
    if files.ca is not None:
        authorities = _read(files.ca_setting, files.ca)
        _certificates(files.ca_setting, files.ca, authorities)
    certificate = Certificate(chain, key, authorities, first.not_valid_after_utc.timestamp())
    try:
        server_context(certificate)
    except (ssl.SSLError, ValueError) as exc:  # a key too short, say
        raise InvalidRequest(cert_setting, str(files.cert), f"cannot be served: {exc}") from None
    return certificate


def server_context(certificate: Certificate) -> ssl.SSLContext:
    """For an HTTP server: TLS 1.2 or newer, and clients with a certificate only if there are authorities for them.

    Raises:
        ssl.SSLError: OpenSSL will not have this certificate.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(HTTP_ALPN)
    # Python loads keys from files only. This one is in memory, and holds what has been checked.
    descriptor = os.memfd_create("swaa-certificate")
    with os.fdopen(descriptor, "wb") as file:
        file.write(certificate.key.rstrip() + b"\n" + certificate.chain)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    if certificate.authorities is not None:
        # PEM is ASCII, and Python takes nothing else; what people write between certificates need not be.
        context.load_verify_locations(cadata=certificate.authorities.decode("ascii", "ignore"))
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise InvalidRequest(setting, str(path), f"cannot be read: {exc.strerror}") from None


def _certificates(setting: str, path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion):
        raise InvalidRequest(setting, str(path), "must have certificates, as PEM") from None


def _check_time(setting: str, path: Path, certificate: x509.Certificate) -> None:
    now, name = datetime.now(UTC), certificate.subject.rfc4514_string()
    if certificate.not_valid_after_utc <= now:
        raise InvalidRequest(setting, str(path), f"the certificate of {name} expired {certificate.not_valid_after_utc}")
    if certificate.not_valid_before_utc > now:
        bound = f"the certificate of {name} is not valid before {certificate.not_valid_before_utc}"
        raise InvalidRequest(setting, str(path), bound)


def _check_key(files: TlsFiles, pem: bytes, certificate: x509.Certificate) -> None:
    setting, path = f"{files.setting}_key_file", str(files.key)
    try:
        belongs = load_pem_private_key(pem, None).public_key() == certificate.public_key()
    except TypeError:
        raise InvalidRequest(setting, path, "is encrypted; a service has nobody to ask for its password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidRequest(setting, path, "must have a private key, as PEM, of a kind that is known") from None
    if not belongs:
        raise InvalidRequest(setting, path, f"is not the key of the certificate in {files.cert}")
