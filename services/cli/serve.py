"""`swaa serve` and `swaa calibrate`: the commands that run a model."""

from __future__ import annotations

import logging
from contextlib import AbstractAsyncContextManager

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from services.config import ServeConfig
from services.cost import CostProfile
from services.embedded import running_service
from services.gateway.front_doors import FrontDoors
from services.replica.calibrate import QUICK, THOROUGH
from services.replica.parts import cost_profile, running_parts


def service(config: ServeConfig) -> AbstractAsyncContextManager[FrontDoors]:
    """The embedded service; it logs how far the first start's measuring is."""
    return running_service(config, _log_calibration)


def _log_calibration(done: int, total: int) -> None:
    logging.getLogger(__name__).info("first start on this machine: measuring costs, %d of %d", done, total)


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
    console.print(_accuracy(profile))


def _accuracy(profile: CostProfile) -> str:
    """How good the profile is, in words."""
    if profile.error_median is None or profile.error_p95 is None:
        return "How far predictions are off was not measured; without --quick it is."
    return (
        f"On prompts and recipes that it was not fitted on, predicted TTFT is off by {profile.error_median:.1%} "
        f"(median), {profile.error_p95:.1%} (95th percentile)."
    )
