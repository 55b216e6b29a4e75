"""How a client knows the service, and shows the service who it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import grpc

from services.client.errors import InvalidRequest

FilePath: TypeAlias = "str | os.PathLike[str]"


def tls(
    ca_file: FilePath | None = None, cert_file: FilePath | None = None, key_file: FilePath | None = None
) -> grpc.ChannelCredentials:
    """Credentials of a client for a service that has TLS.

    Args:
        ca_file: PEM of the authorities that the service's certificate may be of; None: those that come with gRPC.
        cert_file: PEM of the client's own certificate, for a service that asks for one. key_file: its key.

    Raises:
        InvalidRequest: a file cannot be read, or only one of certificate and key is given.
    """
    if cert_file is not None and key_file is None:
        raise InvalidRequest("key_file is None: must be given with cert_file")
    if key_file is not None and cert_file is None:
        raise InvalidRequest("cert_file is None: must be given with key_file")
    ca, key, cert = _read("ca_file", ca_file), _read("key_file", key_file), _read("cert_file", cert_file)
    return grpc.ssl_channel_credentials(ca, key, cert)


def _read(name: str, path: FilePath | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as exc:
        raise InvalidRequest(f"{name} is {os.fspath(path)!r}: cannot be read: {exc.strerror}") from None
