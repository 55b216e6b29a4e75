"""The commands that only look: plan, recipes, info, sessions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.cli.server import ServerAddress
from services.client import PlanOptions, Session

MIB = 1 << 20


async def plan(
    server: ServerAddress, prompt: str | None, prompt_tokens: int | None, session: str | None, options: PlanOptions
) -> None:
    """All recipes as the planner weighs them, the chosen one marked."""
    async with server.client() as client:
        answer = await client.plan(prompt, prompt_tokens=prompt_tokens, session=session, **options)
    objective = answer.objective
    table = Table(
        title=f"{answer.prompt_tokens:,} prompt tokens after {answer.history_tokens:,} of history; class "
        f"{objective.sla_class}: TTFT {objective.ttft_ms:,.0f} ms, TPOT {objective.tpot_ms:.0f} ms, "
        f"quality {objective.min_quality:.2f}"
    )
    for name in ("", "recipe", "quality", "wait ms", "work ms", "TTFT ms", "TPOT ms", "KV MiB", "computed", "misses"):
        table.add_column(name, justify="left" if name in ("", "recipe", "misses") else "right", no_wrap=True)
    for candidate in answer.candidates:
        predicted = candidate.prediction
        table.add_row(
            "*" if candidate.recipe.name == answer.chosen.recipe.name else "",
            candidate.recipe.name,
            f"{predicted.quality:.2f}",
            f"{predicted.wait_ms:,.0f}",
            f"{predicted.work_ms:,.0f}",
            f"{predicted.ttft_ms:,.0f}",
            f"{predicted.tpot_ms:.1f}",
            f"{predicted.kv_bytes / MIB:,.1f}",
            f"{predicted.computed_tokens:,}",
            ", ".join(miss.split()[0] for miss in candidate.misses),
        )
    console = _console()
    console.print(table)
    console.print(f"{answer.chosen.recipe.name}: {answer.reason}")


async def recipes(server: ServerAddress) -> None:
    """The catalogue with measured quality, and the SLA classes."""
    async with server.client() as client:
        answer = await client.recipes()
    console = _console()
    if answer.catalog_error:
        console.print(
            f"[red]the catalogue that is in use is an old one[/]: {escape(answer.catalog_error)}", soft_wrap=True
        )
    table = Table(title="recipes, with quality by prompt length", caption=answer.quality_source)
    lengths = [point.prompt_tokens for point in answer.recipes[0].quality]
    for name in ("recipe", "window", "sinks", "full layers", "tail", "full decode", *(f"{n:,}" for n in lengths)):
        table.add_column(name, justify="left" if name == "recipe" else "right", no_wrap=True)
    table.add_column("meaning")
    for item in answer.recipes:
        recipe = item.recipe
        table.add_row(
            recipe.name,
            f"{recipe.window or 'all'}",
            str(recipe.sink_tokens),
            f"{len(recipe.full_layers) if recipe.window else answer.num_layers} of {answer.num_layers}",
            str(recipe.full_tail),
            "yes" if recipe.full_decode or not recipe.window else "no",
            *(f"{point.recall:.2f}" for point in item.quality),
            recipe.description,
        )
    console.print(table)
    classes = Table(title="SLA classes")
    for name in ("class", "TTFT ms", "TPOT ms", "least quality", "priority", "meaning"):
        classes.add_column(name)
    for sla in answer.sla_classes:
        classes.add_row(
            sla.name,
            f"{sla.ttft_ms:,.0f}",
            f"{sla.tpot_ms:,.0f}",
            f"{sla.min_quality}",
            str(sla.priority),
            sla.description,
        )
    console.print(classes)
    console.print(f"catalogue {answer.catalog_source}, read {_time(answer.catalog_loaded_at_s)}", soft_wrap=True)


async def info(server: ServerAddress) -> None:
    """What is served."""
    async with server.client() as client:
        answer = await client.recipes()
    table = Table(show_header=False)
    for name in (
        "model",
        "num_layers",
        "max_model_tokens",
        "device",
        "attention_backend",
        "cost_source",
        "quality_source",
        "catalog_source",
    ):
        table.add_row(name, str(getattr(answer, name)))
    _console().print(table)


async def list_sessions(server: ServerAddress, limit: int) -> None:
    """A table of sessions."""
    async with server.client() as client:
        print_sessions(await client.sessions.list(limit))


async def get_session(server: ServerAddress, session_id: str) -> None:
    """One session."""
    async with server.client() as client:
        print_sessions([await client.sessions.get(session_id)])


async def fork_session(server: ServerAddress, session_id: str) -> None:
    """The copy."""
    async with server.client() as client:
        print_sessions([await client.sessions.fork(session_id)])


async def delete_session(server: ServerAddress, session_id: str) -> None:
    """Says that it is gone."""
    async with server.client() as client:
        await client.sessions.delete(session_id)
    _console().print(f"deleted {session_id}")


def print_sessions(sessions: Sequence[Session]) -> None:
    """A table of these sessions."""
    table = Table()
    for name in ("session", "version", "turns", "tokens", "recipe", "KV MiB", "updated", "expires"):
        table.add_column(name, no_wrap=name == "session")
    for session in sessions:
        table.add_row(
            session.session_id,
            str(session.version),
            str(session.num_turns),
            f"{session.num_tokens:,}",
            session.recipe_name,
            f"{session.kv_bytes / MIB:.1f}",
            _time(session.updated_at_s),
            _time(session.expires_at_s),
        )
    _console().print(table)


def _console() -> Console:
    """As wide as the terminal; in a pipe, wide enough for every table here."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
