"""`swaa eval`: what recipes cost in quality. Its options are those of `python -m services.quality`."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the command. Its own parser reads the options, so that they are the same where typer is not installed."""

    @app.command(
        "eval",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        add_help_option=False,
    )
    def eval_command(context: typer.Context) -> None:
        """Measure recipes on tasks (`run`), make tables and a plot (`report`); see `swaa eval run --help`."""
        from services.quality.command import main  # here: only the commands that run a model pay for importing torch

        raise typer.Exit(main(context.args))
