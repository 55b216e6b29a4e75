"""`swaa demo`: a service of its own, a long document, two questions in one session, under several SLA classes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from rich.console import Console
from rich.rule import Rule
from rich.table import Table

from services.cli.ask import print_figures, show_turn
from services.cli.server import ServerAddress
from services.client import Answer, AsyncClient
from services.config import ServeConfig
from swaa_runtime.errors import SwaaError

READY_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 60.0
MAX_TOKENS = 48
MIB = 1 << 20


class DemoFailed(SwaaError):
    """Something that the demo shows did not happen."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question about the document, and what a right answer contains."""

    text: str
    expect: str


@dataclass(frozen=True, slots=True)
class Row:
    """One turn of the summary."""

    sla_class: str
    turn: int
    answer: Answer
    right: bool


async def run_demo(config: ServeConfig, sla_classes: list[str]) -> None:
    """Show everything once. Raises DemoFailed if a second turn prefilled the document again or was not saved."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=140)
    document, questions = read_document()
    with tempfile.TemporaryDirectory(prefix="swaa-demo-") as folder:
        console.print("starting the service (the first start converts the model and measures this machine) ...")
        async with own_service(config, Path(folder)) as address, ServerAddress(address).client() as client:
            rows: list[Row] = []
            for sla_class in sla_classes:
                # A copy of its own for each class: none shall profit from another's prefill.
                copy = f"(A copy for SLA class {sla_class}.)\n{document}"
                rows += await ask_under(client, sla_class, copy, questions, console)
            await ask_again(client, sla_classes[-1], copy, questions[1], rows[-2].answer, console)
    console.print(summary(rows))
    console.print("the service has stopped.")


def read_document() -> tuple[str, list[Question]]:
    """The shipped document and its questions."""
    folder = files("services.cli").joinpath("data")
    questions = json.loads(folder.joinpath("harbour_log.json").read_text(encoding="utf-8"))["questions"]
    return folder.joinpath("harbour_log.txt").read_text(encoding="utf-8"), [Question(**entry) for entry in questions]


@contextlib.asynccontextmanager
async def own_service(config: ServeConfig, folder: Path) -> AsyncIterator[str]:
    """`swaa serve` as a child process with its own state, on a free port; stopped on leaving, whatever happens."""
    ready, log_path = folder / "address", folder / "serve.log"
    environment = {
        # On loopback, for a client that has no certificate to show.
        **{name: value for name, value in os.environ.items() if not name.startswith("SWAA_TLS_")},
        "SWAA_LISTEN": "127.0.0.1:0",
        "SWAA_HTTP_LISTEN": "",
        "SWAA_STATE_DIR": str(folder),
        "SWAA_CACHE_DIR": str(config.cache_dir.expanduser().absolute()),
    }
    command = (sys.executable, "-m", "services.cli", "serve", "--ready-file", str(ready))
    with log_path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=log, stderr=log)
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            while not ready.exists():
                if process.returncode is not None:
                    raise DemoFailed(f"the service did not start:\n{log_path.read_text(encoding='utf-8')[-2000:]}")
                await asyncio.sleep(0.1)
        yield ready.read_text(encoding="utf-8")
    finally:
        await _stop(process)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()


async def ask_under(
    client: AsyncClient, sla_class: str, document: str, questions: list[Question], console: Console
) -> list[Row]:
    """All questions in one new session of one SLA class; the document goes with the first only."""
    console.print(Rule(f"SLA class {sla_class}"))
    rows: list[Row] = []
    async with client.session(sla=sla_class, max_tokens=MAX_TOKENS) as chat:
        for turn, question in enumerate(questions, start=1):
            console.print(f"[bold]question {turn}[/]: {question.text}")
            if turn == 1:
                start = functools.partial(chat.stream, document, question=question.text)
            else:
                start = functools.partial(chat.stream, question.text)
            answer = await show_turn(start, console)
            print_figures(answer, console)
            right = question.expect in answer.text
            console.print(f"the answer {'has' if right else 'misses'} {question.expect!r}\n")
            check_turn(turn, answer)
            rows.append(Row(sla_class, turn, answer, right))
    return rows


async def ask_again(
    client: AsyncClient, sla_class: str, document: str, question: Question, before: Answer, console: Console
) -> None:
    """The same document in a session of its own, under the same recipe: most of it need not be prefilled again."""
    console.print(Rule("the same document in another session"))
    console.print(f"[bold]question[/]: {question.text}")
    async with client.session(sla=sla_class, recipe=before.recipe.name, max_tokens=MAX_TOKENS) as chat:
        answer = await show_turn(functools.partial(chat.stream, document, question=question.text), console)
    print_figures(answer, console)
    console.print()
    if answer.usage.restored_tokens < answer.usage.prompt_tokens // 2:
        raise DemoFailed(f"the document was prefilled again: {answer.usage.computed_tokens} tokens")


def check_turn(turn: int, answer: Answer) -> None:
    """What must hold on any machine, however fast: turns are saved, and a later one does not prefill the past again."""
    usage, session = answer.usage, answer.session
    if session is None or not session.saved:
        raise DemoFailed(f"turn {turn} was not saved: {session.error if session else 'it has no session'}")
    if turn > 1 and usage.computed_tokens > usage.prompt_tokens + 1:  # the last token of the answer had no KV yet
        raise DemoFailed(f"turn {turn} computed {usage.computed_tokens} tokens: the document was prefilled again")


def summary(rows: list[Row]) -> Table:
    """All turns side by side."""
    table = Table(title="predicted → measured")
    figures = ("TTFT ms", "TPOT ms", "computed", "of tokens", "KV MiB", "full KV")
    for name in ("class", "turn", "recipe", *figures, "SLA", "fact"):
        table.add_column(name, no_wrap=True, justify="right" if name in figures else "left")
    for row in rows:
        answer, predicted = row.answer, row.answer.prediction
        usage, memory, timings = answer.usage, answer.kv_memory, answer.timings
        table.add_row(
            row.sla_class,
            str(row.turn),
            answer.recipe.name,
            f"{predicted.ttft_ms:,.0f} → {timings.ttft_ms:,.0f}",
            f"{predicted.tpot_ms:.0f} → {timings.tpot_ms:.0f}",
            f"{usage.computed_tokens:,}",
            f"{usage.prompt_tokens + usage.history_tokens:,}",
            f"{memory.resident_bytes / MIB:.1f}",
            f"{memory.full_attention_bytes / MIB:.1f}",
            "met" if answer.sla_met else "missed",
            "found" if row.right else "lost",
        )
    return table
