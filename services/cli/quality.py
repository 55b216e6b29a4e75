"""`swaa eval`, `swaa distill`, `swaa finetune`: what recipes cost in quality, and training for them.

Their options are those of `python -m services.quality` and `python -m services.quality.tune`.
"""

from __future__ import annotations

from collections.abc import Sequence

import typer

from services.cli.imports import imports_that_stay

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def register(app: typer.Typer) -> None:
    """Add the commands. Their own parsers read the options, so that they are the same where typer is not installed."""

    @app.command("eval", context_settings=PASS_ON, add_help_option=False)
    def eval_command(context: typer.Context) -> None:
        """Measure recipes on tasks (`run`), make tables and a plot (`report`); see `swaa eval run --help`."""
        with imports_that_stay():
            from services.quality.command import main  # here: only commands that run a model pay for importing torch

        raise typer.Exit(main(context.args))

    @app.command("distill", context_settings=PASS_ON, add_help_option=False)
    def distill_command(context: typer.Context) -> None:
        """Let the full-attention model answer practice prompts, to train on; see `swaa distill --help`."""
        raise typer.Exit(tune("distill", context.args))

    @app.command("finetune", context_settings=PASS_ON, add_help_option=False)
    def finetune_command(context: typer.Context) -> None:
        """Train a LoRA adapter for a recipe; see `swaa finetune --help`."""
        raise typer.Exit(tune("finetune", context.args))


def tune(command: str, args: Sequence[str]) -> int:
    """Run a command of `services.quality.tune`; its exit status."""
    with imports_that_stay():
        from services.quality.tune import main

    return main([command, *args])
