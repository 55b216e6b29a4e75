"""`swaa generate`: one prompt, a progress bar, a streamed answer, and what it took."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from services.client import Headers, LongContextClient
from services.pb.swaa.v1 import long_context_pb2 as pb

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished turn."""

    accepted: pb.Accepted
    finish: pb.Finish
    text: str
    token_ids: tuple[int, ...]


def make_prompt(text: str, question: str, raw: bool) -> pb.Prompt:
    """A user's message of a text and a question after it, or the bare text."""
    whole = f"{text.rstrip()}\n\n{question}" if question else text
    if raw:
        return pb.Prompt(text=whole)
    # A file's last line break is no part of the message; small models answer differently for it.
    return pb.Prompt(messages=[pb.ChatMessage(role="user", content=whole.strip("\r\n"))])


def make_sampling(
    max_tokens: int, temperature: float, top_p: float, seed: int | None, stop: Sequence[str]
) -> pb.Sampling:
    """Sampling settings as a message."""
    return pb.Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop)


async def generate(
    server: str, prompt: pb.Prompt, sampling: pb.Sampling, headers: Headers, timeout_s: float | None
) -> None:
    """Stream the answer to standard output; progress and figures go to standard error."""
    console = Console(stderr=True, highlight=False)
    async with LongContextClient(server) as client:
        answer = await show_stream(client.generate(prompt, sampling, headers, timeout_s), console)
    print_figures(answer, console)


async def show_stream(responses: AsyncIterator[pb.GenerateResponse], console: Console) -> Answer:
    """Show a turn as it comes: recipe, progress bar, text."""
    accepted, finish = pb.Accepted(), pb.Finish()
    text: list[str] = []
    token_ids: list[int] = []
    columns = (
        TextColumn("prefill"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = None
        async for response in responses:
            kind = response.WhichOneof("event")
            if kind == "accepted":
                accepted = response.accepted
                print_accepted(accepted, console)
            elif kind == "prefill":
                if task is None:
                    task = progress.add_task("prefill", total=response.prefill.total_tokens)
                progress.update(task, completed=response.prefill.done_tokens)
            elif kind == "token":
                if not token_ids:
                    progress.stop()
                token_ids.append(response.token.token_id)
                text.append(response.token.text)
                _write(response.token.text)
            else:
                finish = response.finish
                text.append(finish.text)
                _write(finish.text + "\n")
    return Answer(accepted, finish, "".join(text), tuple(token_ids))


def print_accepted(accepted: pb.Accepted, console: Console) -> None:
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
    finish, predicted = answer.finish, answer.accepted.prediction
    usage, timings, memory = finish.usage, finish.timings, finish.kv_memory
    sla = "met" if finish.sla_met else f"missed: {'; '.join(finish.sla_misses)}"
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
    if finish.HasField("session"):
        session = finish.session
        saved = f"saved as version {session.version}" if session.saved else f"NOT SAVED: {session.error}"
        console.print(
            f"session {session.session_id} {saved} ({session.saved_bytes / MIB:.1f} MiB in {timings.save_ms:.0f} ms); "
            f"history {session.history}",
            soft_wrap=True,
        )


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
