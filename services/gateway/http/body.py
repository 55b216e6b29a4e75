"""Request bodies: bounded bytes, then JSON that is one plain object. What is too large is refused before it is held."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from services.gateway.limits import MAX_BODY_BYTES, MAX_JSON_DEPTH
from swaa_runtime.errors import InvalidRequest, RequestCancelled

PAUSE_TIMEOUT_S = 30.0
"""How long a client may take for the next piece of its body."""


async def read_json(request: Request, max_bytes: int = MAX_BODY_BYTES) -> dict[str, Any]:
    """The body, as a JSON object.

    Raises:
        HTTPException: 415 unless it says that it is JSON, 413 above `max_bytes`, 408 if it stops coming.
        InvalidRequest: for what is no JSON object, see `parse_object`.
        RequestCancelled: if the client goes away.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, f"content-type is {kind!r}: must be application/json")
    return parse_object(await _read(request, max_bytes))


async def _read(request: Request, max_bytes: int) -> bytes:
    too_large = HTTPException(413, f"the body must be at most {max_bytes} bytes", {"connection": "close"})
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise too_large
    body = bytearray()
    pieces = request.stream()
    try:
        while True:
            async with asyncio.timeout(PAUSE_TIMEOUT_S):
                piece = await anext(pieces, None)
            if piece is None:
                return bytes(body)
            body += piece
            if len(body) > max_bytes:
                raise too_large
    except TimeoutError:
        raise HTTPException(408, f"nothing came for {PAUSE_TIMEOUT_S:.0f} s", {"connection": "close"}) from None
    except ClientDisconnect:
        raise RequestCancelled("the client went away while it sent its request") from None


def parse_object(data: bytes) -> dict[str, Any]:
    """One JSON object of UTF-8 text.

    Raises:
        InvalidRequest: for anything else: also names given twice (of which one would be lost silently), NaN and
            Infinity (which are no JSON), half of a surrogate pair (which is no text) and what is nested too deep.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_constant)
    except UnicodeDecodeError as exc:
        raise InvalidRequest("body", data[exc.start : exc.start + 4], f"byte {exc.start} is not UTF-8") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as exc:
        raise InvalidRequest("body", data[:60], f"must be JSON: {exc}") from None
    if not isinstance(value, dict):
        raise InvalidRequest("body", type(value).__name__, "must be a JSON object")
    _check(value)
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


def _check(value: dict[str, Any]) -> None:
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
                raise InvalidRequest("body", item, "has half of a surrogate pair in it, which is no text")
        if not below:
            return
        level = below
    raise _too_deep()


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _too_deep() -> InvalidRequest:
    return InvalidRequest("body", "nested", f"must not be nested deeper than {MAX_JSON_DEPTH}")
