"""`swaa`: start the service, and talk to it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from services.cli import ask, keys, load, quality, show, transfer
from services.cli.imports import imports_that_stay
from services.cli.server import DEFAULT_SERVER, CaFile, CertFile, KeyFile, Server, ServerAddress, Tls, TlsOptions
from services.client import ClientError, PlanOptions, TurnOptions
from services.config import load_config
from swaa_runtime.errors import SwaaError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
sessions_app = typer.Typer(no_args_is_help=True, help="List, show, fork, delete, export and import sessions.")
app.add_typer(sessions_app, name="sessions")
app.add_typer(keys.app, name="keys")
quality.register(app)

Sla = Annotated[str | None, typer.Option(help="SLA class (header x-swaa-sla); see `swaa recipes`.")]
Ttft = Annotated[float | None, typer.Option(help="Aim at this time to first token (x-slo-ttft-ms).")]
Tpot = Annotated[float | None, typer.Option(help="Aim at this time per output token (x-slo-tpot-ms).")]
MinQuality = Annotated[float | None, typer.Option(help="Least quality, 0..1 (x-swaa-min-quality).")]
Session = Annotated[str | None, typer.Option(help='Session to continue, or "new" (x-swaa-session).')]
Priority = Annotated[int | None, typer.Option(help="Lower the class's priority (x-swaa-priority).")]
Recipe = Annotated[str | None, typer.Option(help="Use this recipe, skip the planner (x-swaa-recipe).")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse rather than miss the SLA (x-swaa-strict).")]
Prompt = Annotated[Path | None, typer.Argument(help="File with the prompt, UTF-8; standard input if absent or '-'.")]
Question = Annotated[str, typer.Option("--question", "-q", help="Added after the file's text.")]
MaxTokens = Annotated[int, typer.Option(help="Tokens to generate at most.")]
Raw = Annotated[bool, typer.Option("--raw", help="Send the text as it is, without the model's chat template.")]
SessionId = Annotated[str, typer.Argument(help="Session id.")]
HttpReadyFile = Annotated[Path | None, typer.Option(help="The same for HTTP, before it; not of a cluster.")]

HERE = ServerAddress(DEFAULT_SERVER)


@app.callback()
def swaa(
    context: typer.Context,
    tls: Tls = False,
    ca_file: CaFile = None,
    cert_file: CertFile = None,
    key_file: KeyFile = None,
) -> None:
    """Long prompts on full-attention models at sliding-window cost; the recipe is picked per request from its SLA.

    Options of TLS are of the commands that talk to a service.
    """
    context.obj = TlsOptions(tls, ca_file, cert_file, key_file)


@app.command("serve")
def serve_command(
    listen: Annotated[str | None, typer.Option(help="host:port; port 0 picks a free one.")] = None,
    http_listen: Annotated[str | None, typer.Option(help="The same for HTTP; '' for none.")] = None,
    model: Annotated[str | None, typer.Option(help="'smollm2' or a Hugging Face model folder.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    redis_url: Annotated[str | None, typer.Option(help="Session store; a private Redis if absent.")] = None,
    kv_memory_mib: Annotated[str | None, typer.Option(help="Size of the KV pool, or auto.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Where the private Redis keeps sessions.")] = None,
    ready_file: Annotated[Path | None, typer.Option(help="Write host:port here once serving; one line each.")] = None,
    http_ready_file: HttpReadyFile = None,
    ray: Annotated[bool, typer.Option("--ray", help="A cluster on this machine: replicas under Ray Serve.")] = False,
    num_replicas: Annotated[int, typer.Option(help="Of a cluster.", min=1)] = 2,
    num_gateways: Annotated[int, typer.Option(help="Of a cluster; ports count up from --listen.", min=1)] = 1,
) -> None:
    """Run the service: gateway, one replica and a private Redis. Stops on SIGTERM or Ctrl-C.

    Every setting is also an environment variable SWAA_<NAME>; see docs/operating.md.
    """
    config = load_config(
        listen=listen,
        http_listen=http_listen,
        model=model,
        device=device,
        redis_url=redis_url,
        kv_memory_mib=kv_memory_mib,
        state_dir=state_dir,
    )
    if ray:
        with imports_that_stay():
            from services.cli import cluster

        cluster.serve_cluster(config, num_replicas, num_gateways, ready_file)
        return
    with imports_that_stay():
        from services.cli import process, serve  # here: only the commands that run a model pay for importing torch

    _run(process.serve_until_stopped(config, serve.service(config), ready_file, http_ready_file))


@app.command("gateway")
def gateway_command(
    listen: Annotated[str | None, typer.Option(help="host:port; port 0 picks a free one.")] = None,
    http_listen: Annotated[str | None, typer.Option(help="The same for HTTP; '' for none.")] = None,
    replicas: Annotated[str | None, typer.Option(help="host:port of Ray Serve's gRPC proxy.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model that the replicas run.")] = None,
    redis_url: Annotated[str | None, typer.Option(help="Session store that the replicas use, too.")] = None,
    ready_file: Annotated[Path | None, typer.Option(help="Write host:port here once serving.")] = None,
    http_ready_file: HttpReadyFile = None,
) -> None:
    """Run a gateway alone, in front of a cluster's replicas, without Ray or torch. Stops on SIGTERM or Ctrl-C."""
    with imports_that_stay():
        from services.cli import process
        from services.gateway.process import running_gateway

    config = load_config(listen=listen, http_listen=http_listen, replicas=replicas, model=model, redis_url=redis_url)
    _run(process.serve_until_stopped(config, running_gateway(config), ready_file, http_ready_file))


@app.command(context_settings=quality.PASS_ON)
def calibrate(
    context: typer.Context,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter runs.")] = False,
    layers: Annotated[
        bool, typer.Option("--quality", help="Choose layers of a recipe instead; `--quality --usage` lists options.")
    ] = False,
) -> None:
    """Measure what prefill and decode cost on this machine; the planner predicts from it."""
    if layers:
        args = ["--help" if arg == "--usage" else arg for arg in context.args]
        raise typer.Exit(quality.tune("calibrate", args))
    if context.args:
        raise typer.BadParameter(f"unknown option {context.args[0]}")
    with imports_that_stay():
        from services.cli import serve

    _run(serve.calibrate(load_config(), quick))


@app.command()
def generate(
    file: Prompt = None,
    question: Question = "",
    max_tokens: MaxTokens = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="String that ends the answer; may be repeated.")] = None,
    raw: Raw = False,
    sla: Sla = None,
    ttft_ms: Ttft = None,
    tpot_ms: Tpot = None,
    min_quality: MinQuality = None,
    session: Session = None,
    priority: Priority = None,
    recipe: Recipe = None,
    strict: Strict = False,
    timeout_s: Annotated[float | None, typer.Option(help="Give up after this many seconds.")] = None,
    server: Server = HERE,
) -> None:
    """Send a prompt and stream the answer. Progress and figures go to standard error."""
    options: TurnOptions = {
        "question": question,
        "raw": raw,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop": stop,
        "sla": sla,
        "ttft_ms": ttft_ms,
        "tpot_ms": tpot_ms,
        "min_quality": min_quality,
        "priority": priority,
        "recipe": recipe,
        "strict": strict,
        "timeout_s": timeout_s,
    }
    _run(ask.generate(server, _read(file), session, options))


@app.command()
def plan(
    file: Prompt = None,
    question: Question = "",
    prompt_tokens: Annotated[int, typer.Option(help="Plan for a prompt of this many tokens instead.")] = 0,
    max_tokens: MaxTokens = 256,
    raw: Raw = False,
    sla: Sla = None,
    ttft_ms: Ttft = None,
    tpot_ms: Tpot = None,
    min_quality: MinQuality = None,
    session: Session = None,
    recipe: Recipe = None,
    strict: Strict = False,
    server: Server = HERE,
) -> None:
    """Show which recipe would be picked for a prompt, and why, without running it."""
    options: PlanOptions = {
        "question": question,
        "raw": raw,
        "max_tokens": max_tokens,
        "sla": sla,
        "ttft_ms": ttft_ms,
        "tpot_ms": tpot_ms,
        "min_quality": min_quality,
        "recipe": recipe,
        "strict": strict,
    }
    if prompt_tokens:
        _run(show.plan(server, None, prompt_tokens, session, {**options, "question": None}))
    else:
        _run(show.plan(server, _read(file), None, session, options))


@app.command()
def recipes(server: Server = HERE) -> None:
    """List the recipes with their measured quality, and the SLA classes."""
    _run(show.recipes(server))


@app.command()
def info(server: Server = HERE) -> None:
    """Show what is served: model, device, attention backend, where the figures come from."""
    _run(show.info(server))


@sessions_app.command("list")
def sessions_list(limit: Annotated[int, typer.Option(help="How many at most.")] = 100, server: Server = HERE) -> None:
    """List sessions, most recent first."""
    _run(show.list_sessions(server, limit))


@sessions_app.command("get")
def sessions_get(session_id: SessionId, server: Server = HERE) -> None:
    """Show one session."""
    _run(show.get_session(server, session_id))


@sessions_app.command("fork")
def sessions_fork(session_id: SessionId, server: Server = HERE) -> None:
    """Copy a session; prints the new one."""
    _run(show.fork_session(server, session_id))


@sessions_app.command("delete")
def sessions_delete(session_id: SessionId, server: Server = HERE) -> None:
    """Forget a session."""
    _run(show.delete_session(server, session_id))


@sessions_app.command("export")
def sessions_export(
    session_id: SessionId,
    file: Annotated[Path, typer.Argument(help="File to write; replaced once the session is whole.")],
    server: Server = HERE,
) -> None:
    """Write a session, tokens and KV state, to a file."""
    _run(transfer.export_session(server, session_id, file))


@sessions_app.command("import")
def sessions_import(
    file: Annotated[Path, typer.Argument(help="File that `swaa sessions export` wrote.")],
    server: Server = HERE,
) -> None:
    """Open a session from a file; prints the new one."""
    _run(transfer.import_session(server, file))


app.command("load")(load.load_command)


@app.command()
def demo(
    sla: Annotated[list[str] | None, typer.Option(help="SLA classes to show, in order.")] = None,
) -> None:
    """Start a service, ask a 6,000-token document two questions under three SLA classes, and stop it again."""
    from services.cli.demo import run_demo

    _run(run_demo(load_config(), sla or ["quality", "balanced", "interactive"]))


@app.command("cluster-demo")
def cluster_demo() -> None:
    """Start two replicas, kill the one that is answering, and see the answer complete on the other."""
    from services.cli.cluster_demo import run_cluster_demo

    run_cluster_demo(load_config())


def _read(file: Path | None) -> str:
    """The prompt's text. Raises typer.BadParameter for a file that cannot be read or is not UTF-8."""
    try:
        data = sys.stdin.buffer.read() if file is None or str(file) == "-" else file.read_bytes()
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise typer.BadParameter(f"the prompt is not UTF-8 (byte {exc.start})") from None
    except OSError as exc:
        raise typer.BadParameter(f"cannot read {file}: {exc.strerror}") from None


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run a command; what goes wrong is one line on standard error and exit status 1, never a traceback."""
    asyncio.run(work)


def main() -> None:
    """Entry point of the `swaa` command."""
    errors = Console(stderr=True, highlight=False)
    try:
        app(standalone_mode=True)
    except ClientError as exc:
        errors.print(f"[red]{exc.status}[/]: {escape(str(exc))}", soft_wrap=True)
    except SwaaError as exc:
        errors.print(f"[red]{type(exc).__name__}[/]: {escape(str(exc))}", soft_wrap=True)
    except ValidationError as exc:
        for problem in exc.errors():
            name = ".".join(map(str, problem["loc"]))
            errors.print(f"[red]setting[/] {escape(name)}: {escape(problem['msg'])}", soft_wrap=True)
    except KeyboardInterrupt:
        sys.exit(130)
    else:
        return
    sys.exit(1)
