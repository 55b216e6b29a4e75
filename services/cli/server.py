"""Which service a command talks to, and how: --server of each command, and the TLS options of `swaa` itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import grpc
import typer

from services.cli.asking import api_key
from services.client import AsyncClient, tls
from services.gateway.limits import GRPC_OPTIONS

DEFAULT_SERVER = "127.0.0.1:50051"

Tls = Annotated[bool, typer.Option("--tls", help="The service has TLS.", envvar="SWAA_CLIENT_TLS")]
CaFile = Annotated[
    Path | None,
    typer.Option(help="PEM of the authorities of its certificate; implies --tls.", envvar="SWAA_CLIENT_CA_FILE"),
]
CertFile = Annotated[
    Path | None,
    typer.Option(help="PEM of our own certificate, if it asks for one; implies --tls.", envvar="SWAA_CLIENT_CERT_FILE"),
]
KeyFile = Annotated[Path | None, typer.Option(help="PEM of its key.", envvar="SWAA_CLIENT_KEY_FILE")]


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A service as commands know it.

    Attributes:
        target: host:port.
        credentials: for TLS; None: without.
    """

    target: str
    credentials: grpc.ChannelCredentials | None = None

    def client(self) -> AsyncClient:
        """A client of it that says who asks, to be used as a context manager."""
        return AsyncClient(self.target, api_key=api_key(), credentials=self.credentials)

    def channel(self) -> grpc.aio.Channel:
        """A bare channel to it, to be used as a context manager."""
        if self.credentials is None:
            return grpc.aio.insecure_channel(self.target, options=GRPC_OPTIONS)
        return grpc.aio.secure_channel(self.target, self.credentials, options=GRPC_OPTIONS)


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """What `swaa` was told of TLS, before the command's name."""

    enabled: bool
    ca_file: Path | None
    cert_file: Path | None
    key_file: Path | None

    def credentials(self) -> grpc.ChannelCredentials | None:
        """None: without TLS. Raises InvalidRequest for files that cannot be used."""
        if not (self.enabled or self.ca_file or self.cert_file or self.key_file):
            return None
        return tls(self.ca_file, self.cert_file, self.key_file)


def secured(context: typer.Context, server: ServerAddress) -> ServerAddress:
    """The server, with the credentials that follow from the options of `swaa` itself."""
    options = context.find_root().obj
    return replace(server, credentials=options.credentials()) if isinstance(options, TlsOptions) else server


Server = Annotated[
    ServerAddress,
    typer.Option(
        "--server",
        "-s",
        help="host:port of the gateway.",
        envvar="SWAA_LISTEN",
        parser=ServerAddress,
        callback=secured,
        metavar="TEXT",
        show_default=DEFAULT_SERVER,
    ),
]
