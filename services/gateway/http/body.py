"""Request bodies: bounded bytes, then JSON that is one plain object. What is too large is refused before it is held."""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from services.errors import ClientTooSlow
from services.gateway.limits import MAX_BODY_BYTES, MAX_JSON_DEPTH, MAX_JSON_VALUES
from services.gateway.receiving import Intake, Receiving
from swaa_runtime.errors import InvalidRequest, RequestCancelled

_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
"""In time linear in the text: a string that does not end goes to the end."""


async def read_json(request: Request, intake: Intake, max_bytes: int = MAX_BODY_BYTES) -> dict[str, Any]:
    """The body, as a JSON object.

    Raises:
        HTTPException: 415 unless it says that it is JSON, 413 above `max_bytes`, 408 if it comes too slowly.
        InvalidRequest: for what is no JSON object, see `parse_object`.
        OutOfCapacity: if too much is on its way in already.
        RequestCancelled: if the client goes away.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, f"content-type is {kind!r}: must be application/json")
    with intake.receiving("body", max_bytes) as receiving:
        return parse_object(await _read(request, receiving, max_bytes))


async def _read(request: Request, receiving: Receiving, max_bytes: int) -> bytes:
    too_large = HTTPException(413, f"the body must be at most {max_bytes} bytes", {"connection": "close"})
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async for piece in receiving.each(request.stream(), len):
            body += piece
        return bytes(body)
    except InvalidRequest:
        raise too_large from None
    except ClientTooSlow as exc:
        raise HTTPException(408, str(exc), {"connection": "close"}) from None
    except ClientDisconnect:
        raise RequestCancelled("the client went away while it sent its request") from None


def parse_object(data: bytes, field: str = "body") -> dict[str, Any]:
    """One JSON object of UTF-8 text; `field` names it in refusals.

    Raises:
        InvalidRequest: for anything else: also names given twice (of which one would be lost silently), NaN and
            Infinity (which are no JSON), half of a surrogate pair (which is no text), what is nested too deep and what
            has too many values in it, which take far more memory than their text.
    """
    if _num_marks(data) > MAX_JSON_VALUES and _num_marks(_STRINGS.sub(b"", data)) > MAX_JSON_VALUES:
        raise InvalidRequest(field, f"{len(data)} bytes", f"must have at most {MAX_JSON_VALUES} values in it")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_constant)
    except UnicodeDecodeError as exc:
        raise InvalidRequest(field, data[exc.start : exc.start + 4], f"byte {exc.start} is not UTF-8") from None
    except RecursionError:
        raise _too_deep(field) from None
    except ValueError as exc:
        raise InvalidRequest(field, data[:60], f"must be JSON: {exc}") from None
    if not isinstance(value, dict):
        raise InvalidRequest(field, type(value).__name__, "must be a JSON object")
    _check(value, field)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"{name[:60]!r} is given twice")
            seen.add(name)
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not allowed")


def _check(value: dict[str, Any], field: str) -> None:
    """Depth and text of everything in it, without recursion."""
    level: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str) and not _is_text(item):
                raise InvalidRequest(field, item, "has half of a surrogate pair in it, which is no text")
        if not below:
            return
        level = below
    raise _too_deep(field)


def _num_marks(data: bytes) -> int:
    """At least as many as there are values, less one."""
    return sum(data.count(mark) for mark in (b",", b"[", b"{"))


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _too_deep(field: str) -> InvalidRequest:
    return InvalidRequest(field, "nested", f"must not be nested deeper than {MAX_JSON_DEPTH}")
