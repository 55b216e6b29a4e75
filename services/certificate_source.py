"""A certificate as it is now, for servers and channels: read again when its files change, without a restart.

Connections keep the certificate that they were opened with; new ones get the new one. A file that is wrong, or not yet
whole, changes nothing but `error`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import grpc

from services.file_stamp import WATCH_INTERVAL_S, keep_refreshing, stamp_of
from services.tls import Certificate, TlsFiles, read_certificate, server_context
from swaa_runtime.errors import InvalidRequest

logger = logging.getLogger(__name__)


class CertificateSource:
    """The last good certificate. `refresh` belongs to one event loop; the attributes may be read from any thread.

    Attributes:
        files: where it is.
        current: what new connections get.
        error: why what is in the files now is not used; empty if it is.
        num_failures: how many times files were not used.
    """

    def __init__(self, files: TlsFiles) -> None:
        """Raises InvalidRequest: a service does not start with a bad certificate."""
        self.files = files
        self.error = ""
        self.num_failures = 0
        self._stamp = stamp_of(files.paths)
        self.current = read_certificate(files)

    async def watch(self, interval_s: float = WATCH_INTERVAL_S) -> None:
        """Look whether the files changed, for ever. Cancel it to end it."""
        await keep_refreshing(self.refresh, interval_s)

    async def refresh(self) -> None:
        """Read the files again if they changed, or were bad: time alone makes some good, and bad."""
        stamp = stamp_of(self.files.paths)
        if stamp == self._stamp and not self.error:
            return
        changed, self._stamp = stamp != self._stamp, stamp  # before reading: what comes meanwhile is seen next time
        try:
            certificate = await asyncio.to_thread(read_certificate, self.files)
        except InvalidRequest as exc:
            if changed or str(exc) != self.error:
                self.error = str(exc)
                self.num_failures += 1
                logger.error("the new certificate is not used, the old one stays: %s", exc)
            return
        self.error = ""
        if certificate != self.current:
            self.current = certificate
            logger.info("certificate of %s read again", self.files.cert)


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
