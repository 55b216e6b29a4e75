"""A server process: logging, a file that says when it is ready, and an orderly end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from services.config import ServeConfig
from services.gateway.front_doors import FrontDoors
from services.telemetry import logs

logger = logging.getLogger(__name__)


async def serve_until_stopped(
    config: ServeConfig,
    running: AbstractAsyncContextManager[FrontDoors],
    ready_file: Path | None,
    http_ready_file: Path | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain and stop."""
    logs.configure(config.log_level, config.log_format)
    stopping = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stopping.set)
    async with running as server:
        gc.freeze()  # model and tokenizer stay to the end: looking for garbage among them again would delay tokens
        address = _at(config.listen, server.port)
        logger.info("serving %s on %s", config.model, address)
        if server.http_port is not None:
            http_address = _at(config.http_listen, server.http_port)
            scheme = "http" if config.tls_cert_file is None else "https"
            logger.info("HTTP on %s://%s/v1", scheme, http_address)
            if http_ready_file is not None:
                write_whole(http_ready_file, http_address)
        if ready_file is not None:
            write_whole(ready_file, address)
        await stopping.wait()
        logger.info("stopping; running requests have %.0f s", config.drain_s)


def _at(listen: str, port: int) -> str:
    return f"{listen.rpartition(':')[0]}:{port}"


def write_whole(path: Path, text: str) -> None:
    """Readers see all of it or nothing."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
