"""A wire that can be held up and cut: TCP forwarded to a port of this machine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Proxy:
    """Forwards connections. Answers wait while `answers` is cleared; `cut` breaks all connections there are."""

    def __init__(self, target_port: int) -> None:
        self.answers = asyncio.Event()
        self.answers.set()
        self.num_connections = 0
        self.port = 0
        self._target_port = target_port
        self._writers: list[asyncio.StreamWriter] = []

    def cut(self) -> None:
        """Break all connections, and let the answers of later ones through."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        self.answers.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        self.num_connections += 1
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            self._writers += [writer, far_writer]
            await asyncio.gather(self._pump(reader, far_writer, False), self._pump(far_reader, writer, True))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if is_answer:
                    await self.answers.wait()
                writer.write(data)
                await writer.drain()
            writer.close()


@contextlib.asynccontextmanager
async def running_proxy(target_port: int) -> AsyncIterator[Proxy]:
    """A proxy that listens on `port`."""
    proxy = Proxy(target_port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()
