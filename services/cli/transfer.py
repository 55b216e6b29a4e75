"""The commands that move a session between a service and a file."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import typer

from services.cli.server import ServerAddress
from services.cli.show import print_sessions


async def export_session(server: ServerAddress, session_id: str, file: Path) -> None:
    """Says how many bytes were written. Raises typer.BadParameter if the file cannot be written."""
    with _replacing(file) as out:
        async with server.client() as client:
            num_bytes = await client.sessions.export_to(out, session_id)
    typer.echo(f"exported {session_id}: {num_bytes:,} bytes")


async def import_session(server: ServerAddress, file: Path) -> None:
    """The new session. Raises typer.BadParameter if the file cannot be read."""
    with _reading(file) as source:
        async with server.client() as client:
            print_sessions([await client.sessions.import_from(source)])


@contextlib.contextmanager
def _replacing(file: Path) -> Iterator[IO[bytes]]:
    """A file that takes this one's place if the body ends well, and else is gone. Nobody but its owner can read it."""
    try:
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as partial:
            try:
                yield partial
                partial.flush()
                Path(partial.name).replace(file)
            except BaseException:
                Path(partial.name).unlink(missing_ok=True)
                raise
    except OSError as exc:
        raise typer.BadParameter(f"cannot write {file}: {exc.strerror}") from None


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[IO[bytes]]:
    try:
        with file.open("rb") as source:
            yield source
    except OSError as exc:
        raise typer.BadParameter(f"cannot read {file}: {exc.strerror}") from None
