"""A TCP proxy before a server on a Unix socket, that can be made slow, silent or broken. Has a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from pathlib import Path
from typing import Literal, Self

Mode = Literal["pass", "slow", "hole", "cut"]
"""Bytes pass; each piece is late; nothing passes and nobody is told; connections are reset, new ones too."""

PIECE_BYTES = 1 << 16
DELAY_S = 0.05
RESET = b"\x01\x00\x00\x00\x00\x00\x00\x00"
"""SO_LINGER of no time: closing sends a reset."""


class Link:
    """Use as a context manager. `mode` may be set at any time, from any thread.

    Attributes:
        port: that it listens on.
    """

    def __init__(self, target: Path, host: str = "127.0.0.1") -> None:
        self.port = 0
        self._target = target
        self._host = host
        self._mode: Mode = "pass"
        self._changed = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._ready = threading.Event()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.set("cut")
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def set(self, mode: Mode) -> None:
        """Change what happens to all bytes from now on."""
        asyncio.run_coroutine_threadsafe(self._set(mode), self._loop).result()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._serve, self._host, 0)
        async with server:
            self.port = server.sockets[0].getsockname()[1]
            self._ready.set()
            await self._stopping.wait()

    async def _set(self, mode: Mode) -> None:
        self._mode = mode
        self._changed.set()
        self._changed = asyncio.Event()
        if mode == "cut":
            for writer in list(self._writers):
                self._reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode == "cut":
            self._reset(writer)
            return
        try:
            server_reader, server_writer = await asyncio.open_unix_connection(self._target)
        except OSError:  # the server is down
            self._reset(writer)
            return
        ends = (writer, server_writer)
        self._writers.update(ends)
        try:
            await asyncio.gather(self._pump(reader, server_writer), self._pump(server_reader, writer))
        except OSError:
            pass
        finally:
            self._writers.difference_update(ends)
            for end in ends:
                end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(PIECE_BYTES):
            while self._mode == "hole":
                await self._changed.wait()
            if self._mode == "slow":
                await asyncio.sleep(DELAY_S)
            writer.write(piece)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()

    def _reset(self, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        with contextlib.suppress(OSError):  # one end is a Unix socket
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()
