"""The commands for API keys: new, list, revoke. They write a file, which gateways read again by themselves."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from services.gateway.auth.api_keys import new_key
from services.gateway.auth.key_file import editing, read_keys
from swaa_runtime.errors import InvalidRequest

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys (SWAA_API_KEYS_FILE).")

UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1)}
EXPIRY_BOUND = "must be hours (12h), days (90d), or a time with its zone (2027-01-31T00:00:00Z), and in the future"

File = Annotated[Path, typer.Option("--file", help="The file of keys.", envvar="SWAA_API_KEYS_FILE")]


@app.command("new")
def new(
    tenant: Annotated[str, typer.Option(help="Whose sessions, quotas and SLA classes hold for it.")],
    file: File,
    name: Annotated[str, typer.Option(help="What it is for; shown in lists.")] = "",
    expires: Annotated[str | None, typer.Option(help="12h, 90d, or a time; never if absent.")] = None,
    operator: Annotated[bool, typer.Option("--operator", help="May read /metrics, of all tenants.")] = False,
) -> None:
    """Make a key and show it, this once: the file gets its digest only."""
    now = datetime.now(UTC).replace(microsecond=0)
    expires_at = None if expires is None else parse_expiry(expires, now)
    try:
        credential, kept = new_key(tenant, now, name, expires_at, operator)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        raise InvalidRequest(str(first["loc"][0]), first["input"], first["msg"]) from None
    with editing(file) as keys:
        keys.append(kept)
    typer.echo(credential)
    until = "never expires" if expires_at is None else f"expires at {expires_at.isoformat()}"
    typer.echo(f"key {kept.id} of tenant {tenant} {until}; it is not shown again", err=True)


@app.command("list")
def list_keys(file: File) -> None:
    """List keys, without what they are made of."""
    now = datetime.now(UTC)
    table = Table()
    for column in ("id", "tenant", "state", "created, UTC", "expires, UTC", "name", ""):
        table.add_column(column, no_wrap=column in ("id", "state", "created, UTC", "expires, UTC"))
    for key in read_keys(file):
        expires = "never" if key.expires_at is None else _shown(key.expires_at)
        role = "operator" if key.operator else ""
        table.add_row(key.id, key.tenant, key.state(now), _shown(key.created_at), expires, key.name, role)
    Console(highlight=False, markup=False).print(table)


@app.command("revoke")
def revoke(key_id: Annotated[str, typer.Argument(help="Id of the key, as `list` shows it.")], file: File) -> None:
    """Revoke a key: it is refused from the next reading of the file on, within seconds. What runs, runs on."""
    with editing(file) as keys:
        for place, key in enumerate(keys):
            if key.id == key_id:
                now = datetime.now(UTC).replace(microsecond=0)
                keys[place] = key.model_copy(update={"revoked_at": key.revoked_at or now})
                break
        else:
            raise InvalidRequest("key_id", key_id, "is not in the file")
    typer.echo(f"revoked {key_id}")


def _shown(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def parse_expiry(text: str, now: datetime) -> datetime:
    """When a key expires. Raises InvalidRequest for what is no time, or past."""
    try:
        if span := re.fullmatch(r"(\d{1,5})([hd])", text):
            at = now + int(span[1]) * UNITS[span[2]]
        else:
            at = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest("expires", text, EXPIRY_BOUND) from None
    if at.tzinfo is None or at <= now:
        raise InvalidRequest("expires", text, EXPIRY_BOUND)
    return at
