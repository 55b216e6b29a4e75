"""Authorities and certificates of tests, made when they are needed; and TLS as a client sees it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import trustme
from cryptography import x509

from services.tls import TlsFiles


@dataclass(frozen=True, slots=True)
class CertificateFolder:
    """A certificate in files, as settings name them, and the authority that it is of."""

    folder: Path
    authority: trustme.CA = field(default_factory=trustme.CA)

    @property
    def cert(self) -> Path:
        return self.folder / "tls.crt"

    @property
    def key(self) -> Path:
        return self.folder / "tls.key"

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    def files(self, asks_clients: bool = False) -> TlsFiles:
        return TlsFiles("tls", "tls_client_ca_file", self.cert, self.key, self.ca if asks_clients else None)

    def issue(self, *names: str, key_type: trustme.KeyType = trustme.KeyType.ECDSA) -> trustme.LeafCert:
        """A new certificate, by default one of this machine, in the place of the one before."""
        issued = self.authority.issue_cert(*(names or ("127.0.0.1", "localhost")), key_type=key_type)
        self.write(issued)
        return issued

    def write(self, issued: trustme.LeafCert) -> None:
        """Each file in the place of the one before, whole."""
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        for path, content in ((self.cert, chain), (self.key, issued.private_key_pem.bytes())):
            replace(path, content)
        replace(self.ca, self.authority.cert_pem.bytes())


def issued_in(folder: Path, *names: str) -> CertificateFolder:
    """A folder with a certificate."""
    folder.mkdir(exist_ok=True)
    certificates = CertificateFolder(folder)
    certificates.issue(*names)
    return certificates


def replace(path: Path, content: bytes) -> None:
    """As orchestrators do: another file in its place, so that its identity changes however coarse the clock is."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)


def serial_of(path: Path) -> int:
    """Serial number of the first certificate of a file."""
    return x509.load_pem_x509_certificates(path.read_bytes())[0].serial_number


def trusting(ca: Path, own: CertificateFolder | None = None, alpn: str = "http/1.1") -> ssl.SSLContext:
    """A client's context."""
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols([alpn])
    if own is not None:
        context.load_cert_chain(own.cert, own.key)
    return context


@dataclass(frozen=True, slots=True)
class Seen:
    """What a client saw of a server. `version` and `protocol` are TLS's and ALPN's."""

    serial: int
    version: str | None
    protocol: str | None


async def look(port: int, context: ssl.SSLContext) -> Seen:
    """Open a connection, and close it. Raises ssl.SSLError if one end refuses."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    tls = writer.get_extra_info("ssl_object")
    serial = x509.load_der_x509_certificate(tls.getpeercert(True)).serial_number
    seen = Seen(serial, tls.version(), tls.selected_alpn_protocol())
    writer.close()
    with contextlib.suppress(ssl.SSLError, ConnectionError):  # the other end may be the first to hang up
        await writer.wait_closed()
    return seen
