"""A certificate as it is now, for servers and channels: read again when its files change, without a restart.

Connections keep the certificate that they were opened with; new ones get the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import grpc

from services.reloaded import Reloaded
from services.tls import Certificate, TlsFiles, read_certificate, server_context


class CertificateSource(Reloaded[Certificate]):
    """The last good certificate: what new connections get.

    Attributes:
        files: where it is.
    """

    def __init__(self, files: TlsFiles) -> None:
        """Raises InvalidRequest: a service does not start with a bad certificate."""
        self.files = files
        super().__init__("certificate", files.paths, lambda: (read_certificate(files), files.paths))


@contextlib.asynccontextmanager
async def watched_certificates(files: TlsFiles | None) -> AsyncIterator[CertificateSource | None]:
    """A certificate that is kept up to date until the end of the context; None if there are no files for one.

    Raises:
        InvalidRequest: it cannot be used as it is now.
    """
    if files is None:
        yield None
        return
    source = CertificateSource(files)
    watching = asyncio.create_task(source.watch())
    try:
        yield source
    finally:
        watching.cancel()


def grpc_server_credentials(source: CertificateSource) -> grpc.ServerCredentials:
    """For a gRPC server. Clients need a certificate if the source has authorities for them."""
    given = source.current

    def changed() -> Any:
        """Called by gRPC before each handshake, on a thread of its own."""
        nonlocal given
        if (current := source.current) is given:
            return None
        given = current
        return _configuration(current)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(given), changed, require_client_authentication=source.files.ca is not None
    )


def _configuration(certificate: Certificate) -> Any:
    return grpc.ssl_server_certificate_configuration([(certificate.key, certificate.chain)], certificate.authorities)


def channel_credentials(certificate: Certificate) -> grpc.ChannelCredentials:
    """For a channel to a server whose certificate is of the same authorities."""
    return grpc.ssl_channel_credentials(certificate.authorities, certificate.key, certificate.chain)


class CurrentContext(ssl.SSLContext):
    """An SSLContext for asyncio's servers: each connection is opened with the source's certificate of that moment.

    Behind it stands a context for each certificate. Loading a new certificate into the old context would leave there
    what the new one replaces: certificates of keys of another kind, authorities, sessions that can be resumed.
    """

    _context_of: Callable[[], ssl.SSLContext]

    @classmethod
    def following(cls, source: CertificateSource) -> Self:
        """Of a source."""
        given, context = source.current, server_context(source.current)

        def current() -> ssl.SSLContext:
            nonlocal given, context
            if source.current is not given:
                given, context = source.current, server_context(source.current)
            return context

        self = cls(ssl.PROTOCOL_TLS_SERVER)
        self._context_of = current
        return self

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """Called by asyncio for each connection."""
        return self._context_of().wrap_bio(*args, **options)
