"""`swaa serve` and `swaa calibrate`: the commands that run a model."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from services.config import ServeConfig
from services.embedded import running_service
from services.replica.calibrate import QUICK, THOROUGH
from services.replica.parts import cost_profile, running_parts


async def serve(config: ServeConfig, ready_file: Path | None) -> None:
    """Serve until SIGTERM or SIGINT, then drain and stop."""
    logging.basicConfig(level=config.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    stopping = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stopping.set)
    async with running_service(config, _log_calibration) as server:
        host = config.listen.rpartition(":")[0]
        address = f"{host}:{server.port}"
        logging.getLogger(__name__).info("serving %s on %s", config.model, address)
        if ready_file is not None:
            write_whole(ready_file, address)
        await stopping.wait()
        logging.getLogger(__name__).info("stopping; running requests have %.0f s", config.drain_s)


def _log_calibration(done: int, total: int) -> None:
    logging.getLogger(__name__).info("first start on this machine: measuring costs, %d of %d", done, total)


def write_whole(path: Path, text: str) -> None:
    """Readers see all of it or nothing."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


async def calibrate(config: ServeConfig, quick: bool) -> None:
    """Measure the cost profile anew, keep it, show it."""
    console = Console()
    async with running_parts(config) as parts:
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("measuring", total=None)
            profile = await cost_profile(
                config,
                parts,
                QUICK if quick else THOROUGH,
                lambda done, total: progress.update(task, completed=done, total=total),
            )
    table = Table(title="cost profile")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in profile.to_mapping().items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    console.print(table)
