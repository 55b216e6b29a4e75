"""The console: a page at `/` and its files below `/console/`, read once, from the package. It asks public endpoints.

The policy of its responses lets the page run its own scripts and styles and talk to this gateway, and nothing else: no
inline code, no other origins, no frames around it, and no text that becomes markup.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

INDEX = "index.html"

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Kept by browsers, and asked for again each time: names have no version in them, and 304 costs next to nothing.
    "cache-control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class Page:
    """A file as it is sent."""

    content: bytes
    content_type: str

    @property
    def etag(self) -> str:
        """Of this content."""
        return f'"{hashlib.blake2b(self.content, digest_size=16).hexdigest()}"'


class ConsolePages:
    """Serves the console's files."""

    def __init__(self) -> None:
        folder = files("services.gateway.http").joinpath("console")
        self._pages = {
            file.name: Page(file.read_bytes(), CONTENT_TYPES[suffix])
            for file in folder.iterdir()
            if (suffix := "." + file.name.rpartition(".")[2]) in CONTENT_TYPES
        }

    def routes(self) -> list[Route]:
        """The page itself, and its files."""
        return [
            Route("/", self.index, methods=["GET"]),
            Route("/console/{name}", self.file, methods=["GET"]),
        ]

    async def index(self, request: Request) -> Response:
        """The page."""
        return self._answer(request, INDEX)

    async def file(self, request: Request) -> Response:
        """A file of it. Raises HTTPException: 404."""
        return self._answer(request, request.path_params["name"])

    def _answer(self, request: Request, name: str) -> Response:
        page = self._pages.get(name)
        if page is None:
            raise HTTPException(404, f"the console has no file {name[:60]!r}")
        headers = {**HEADERS, "etag": page.etag}
        if page.etag in [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=headers)
        return Response(page.content, headers={**headers, "content-type": page.content_type})
