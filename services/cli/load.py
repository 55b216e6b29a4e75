"""`swaa load`: an open-loop load against a running service, and what came of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from services.cli.asking import api_key
from services.cli.server import DEFAULT_SERVER, Server, ServerAddress
from services.client.options import authorization
from services.load.arrivals import Bursts
from services.load.plots import write_plots
from services.load.prompts import text_prompts
from services.load.report import PERCENTILES, Group, Report, make_report
from services.load.results import Result, write_results
from services.load.runner import LoadRunner
from services.load.trace import (
    TraceRequest,
    TraceSpec,
    make_trace,
    parse_names,
    parse_numbers,
    read_trace,
    write_trace,
)
from services.pb.swaa.v1 import long_context_pb2_grpc as pb_grpc
from swaa_runtime.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where a load's files go; None leaves one out."""

    results: Path | None
    summary: Path | None
    plots: Path | None
    trace: Path | None


def load_command(
    rate: Annotated[float, typer.Option(help="Requests per second, on average.")] = 1.0,
    duration_s: Annotated[float, typer.Option(help="Seconds in which requests arrive.")] = 60.0,
    lengths: Annotated[
        str, typer.Option(help="Prompt tokens and their weights, ranges too: 500:0.5,2000-4000:0.5.")
    ] = "500:0.5,2000:0.3,6000:0.2",
    max_tokens: Annotated[str, typer.Option(help="Generated tokens and their weights, ranges too.")] = "16:0.5,64:0.5",
    classes: Annotated[
        str, typer.Option(help="SLA classes and their weights.")
    ] = "interactive:0.4,balanced:0.4,quality:0.2",
    bursty: Annotated[bool, typer.Option("--bursty", help="Arrivals in bursts instead of evenly random ones.")] = False,
    peak: Annotated[float, typer.Option(help="Rate within a burst, as a multiple of --rate.")] = 3.0,
    burst_s: Annotated[float, typer.Option(help="Mean length of a burst, in seconds.")] = 5.0,
    sessions_share: Annotated[float, typer.Option(help="Share of requests that belong to conversations.")] = 0.0,
    session_turns: Annotated[int, typer.Option(help="Turns of a conversation.")] = 3,
    seed: Annotated[int, typer.Option(help="The same seed makes the same load.")] = 0,
    header: Annotated[
        list[str] | None, typer.Option(help="name=value for every request, like x-swaa-strict=true; may be repeated.")
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="Replay this file instead of drawing a load.")] = None,
    save_trace: Annotated[Path | None, typer.Option(help="Write the load that was drawn here.")] = None,
    results: Annotated[Path | None, typer.Option(help="Write one JSON line a request here.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Write all figures here, as JSON.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Write pictures into this folder.")] = None,
    timeout_s: Annotated[float, typer.Option(help="Deadline of each request.")] = 600.0,
    server: Server = ServerAddress(DEFAULT_SERVER),  # noqa: B008 - frozen
) -> None:
    """Send requests at their own times, however slow the answers are, and report what SLAs were met."""
    if trace is not None:
        requests = read_trace(trace)
    else:
        spec = TraceSpec(
            rate_per_s=rate,
            duration_s=duration_s,
            prompt_tokens=parse_numbers("lengths", lengths),
            max_tokens=parse_numbers("max_tokens", max_tokens),
            sla_classes=parse_names("classes", classes),
            bursts=Bursts(peak=peak, burst_s=burst_s) if bursty else None,
            sessions_share=sessions_share,
            session_turns=session_turns,
            seed=seed,
            headers=_headers(header or []),
        )
        requests = make_trace(spec)
    if not requests:
        raise InvalidRequest("duration_s", duration_s, "no request arrives in it; make it or the rate larger")
    asyncio.run(run_load(server, requests, seed, timeout_s, Outputs(results, summary, plots, save_trace)))


def _headers(given: Sequence[str]) -> Mapping[str, str]:
    pairs = [text.partition("=") for text in given]
    for (name, equals, value), text in zip(pairs, given, strict=True):
        if not (name and equals and value):
            raise InvalidRequest("header", text, "must be name=value")
    return {name: value for name, _, value in pairs}


async def run_load(
    server: ServerAddress, requests: Sequence[TraceRequest], seed: int, timeout_s: float, outputs: Outputs
) -> Report:
    """Run it, show it, and write what is to be written."""
    console = Console(highlight=False)
    if outputs.trace is not None:
        write_trace(outputs.trace, requests)
    credentials = authorization(api_key())
    columns = (TextColumn("answered"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    async with server.channel() as channel:
        stub = pb_grpc.LongContextStub(channel)  # type: ignore[no-untyped-call]
        prompts = await text_prompts(stub, seed, credentials)
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=len(requests))

            def advance(result: Result) -> None:
                progress.advance(task)

            results = await LoadRunner(stub, prompts, timeout_s, advance, credentials).run(requests)
    report = make_report(results)
    show_report(report, console)
    if outputs.results is not None:
        write_results(outputs.results, results)
    if outputs.summary is not None:
        outputs.summary.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    if outputs.plots is not None:
        for path in write_plots(outputs.plots, results, report):
            console.print(f"wrote {path}", soft_wrap=True)
    return report


def show_report(report: Report, console: Console) -> None:
    """Tables of all, by class and by recipe."""
    groups = {
        "all": report.total,
        **{f"class {name}": group for name, group in report.by_class.items()},
        **{f"recipe {name}": group for name, group in report.by_recipe.items()},
    }
    latency = Table(title="latency in ms at " + ", ".join(f"p{p}" for p in PERCENTILES))
    for name in ("", "requests", "refused", "errors", "TTFT", "TPOT", "TTFT prediction off by, median / p95"):
        latency.add_column(name, justify="left" if not name else "right")
    outcome = Table(title="what came of it")
    for name in ("", "SLA met", "latency met", "met or refused", "mean quality", "goodput tokens/s"):
        outcome.add_column(name, justify="left" if not name else "right")
    for name, group in groups.items():
        latency.add_row(name, *_latency_row(group))
        outcome.add_row(name, *_outcome_row(group))
    console.print(latency)
    console.print(outcome)
    console.print(
        f"{report.total.num_requests} requests in {report.duration_s:.1f} s; sent at most {report.late_ms_p99:.0f} ms "
        "late (p99). A refusal or an error is a missed SLA. Quality is the server's own table.",
        soft_wrap=True,
    )


def _latency_row(group: Group) -> list[str]:
    return [
        str(group.num_requests),
        str(group.num_refused),
        str(group.num_errors),
        " ".join(f"{value:,.0f}" for value in group.ttft_ms) or "-",
        " ".join(f"{value:,.1f}" for value in group.tpot_ms) or "-",
        f"{group.ttft_error_median:.0%} / {group.ttft_error_p95:.0%}" if group.num_ok else "-",
    ]


def _outcome_row(group: Group) -> list[str]:
    return [
        f"{group.hit_rate:.1%}",
        f"{group.hit_latency_rate:.1%}",
        f"{group.honest_rate:.1%}",
        f"{group.mean_quality:.3f}" if group.num_ok else "-",
        f"{group.goodput_tokens_s:,.1f}",
    ]
