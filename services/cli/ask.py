"""The generate command: one prompt, a progress bar, a streamed answer, and what it took."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Unpack

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from services.cli.server import ServerAddress
from services.client import Accepted, Answer, AsyncAnswerStream, TurnOptions
from services.client import Progress as Prefill

MIB = 1 << 20


async def generate(server: ServerAddress, prompt: str, session: str | None, options: TurnOptions) -> None:
    """Stream the answer to standard output; progress and figures go to standard error."""
    console = Console(stderr=True, highlight=False)
    async with server.client() as client:

        def start(**listeners: Unpack[TurnOptions]) -> AsyncAnswerStream:
            given: TurnOptions = {**options, **listeners}
            return client.stream(prompt, session=session, **given)

        answer = await show_turn(start, console)
    print_figures(answer, console)


async def show_turn(start: Callable[..., AsyncAnswerStream], console: Console) -> Answer:
    """Show a turn as it comes: recipe, progress bar, text. `start` starts it, given the listeners to take along."""
    columns = (
        TextColumn("prefill"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("prefill", visible=False)

        def on_progress(prefill: Prefill) -> None:
            progress.update(task, completed=prefill.done_tokens, total=prefill.total_tokens, visible=True)

        def on_accepted(accepted: Accepted) -> None:
            print_accepted(accepted, console)

        async with start(on_accepted=on_accepted, on_progress=on_progress) as stream:
            async for token in stream:
                progress.stop()
                _write(token.text)
            answer = await stream.answer()
    _write("\n")
    return answer


def print_accepted(accepted: Accepted, console: Console) -> None:
    """Which recipe, why, and what is expected."""
    prediction, objective = accepted.prediction, accepted.objective
    console.print(
        f"recipe [bold]{accepted.recipe.name}[/] for class {objective.sla_class} ({accepted.reason}); predicted TTFT "
        f"{prediction.ttft_ms:,.0f} ms of {objective.ttft_ms:,.0f}, TPOT {prediction.tpot_ms:.0f} ms of "
        f"{objective.tpot_ms:.0f}, quality {prediction.quality:.2f} of {objective.min_quality:.2f}",
        soft_wrap=True,
    )


def print_figures(answer: Answer, console: Console) -> None:
    """What the turn took, against what was predicted and against full attention."""
    predicted, usage, timings, memory = answer.prediction, answer.usage, answer.timings, answer.kv_memory
    sla = "met" if answer.sla_met else f"missed: {'; '.join(answer.sla_misses)}"
    console.print(
        f"tokens: prompt {usage.prompt_tokens:,}, history {usage.history_tokens:,}, "
        f"restored {usage.restored_tokens:,}, computed {usage.computed_tokens:,}, "
        f"generated {usage.generated_tokens:,}\n"
        f"TTFT {timings.ttft_ms:,.0f} ms (predicted {predicted.ttft_ms:,.0f}), TPOT {timings.tpot_ms:.1f} ms "
        f"(predicted {predicted.tpot_ms:.1f}); SLA {sla}\n"
        f"KV memory {memory.resident_bytes / MIB:,.1f} MiB resident, {memory.peak_bytes / MIB:,.1f} at most; "
        f"full attention holds {memory.full_attention_bytes / MIB:,.1f} MiB",
        soft_wrap=True,
    )
    session = answer.session
    if session is not None:
        saved = f"saved as version {session.version}" if session.saved else f"NOT SAVED: {session.error}"
        console.print(
            f"session {session.session_id} {saved} ({session.saved_bytes / MIB:.1f} MiB in {timings.save_ms:.0f} ms); "
            f"history {session.history}",
            soft_wrap=True,
        )


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
