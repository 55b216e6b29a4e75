"""Who asks over HTTP: every request but probes' and the console's files has an identity before it is routed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from services.errors import PermissionDenied, Unauthenticated
from services.gateway.auth.authenticator import Authenticator
from services.gateway.http.errors import answer_error
from services.gateway.identity import Identity

IDENTITY = "swaa.identity"
"""Where the ASGI scope of a request has it."""

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/"})
OPEN_FOLDER = "/console/"
"""The page asks by the same endpoints as everybody: its files are the same for all, and have no data in them."""

Endpoint = Callable[[Request], Awaitable[Response]]


class Authentication:
    """ASGI middleware. Refuses before anything of a request's body is read."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_FOLDER):
            await self._app(scope, receive, send)
            return
        headers = [(name.decode("latin-1"), value) for name, value in scope["headers"]]
        try:
            identity = self._authenticator.identify(headers)
        except Unauthenticated as exc:
            await (await answer_error(Request(scope), exc))(scope, receive, send)
            return
        await self._app({**scope, IDENTITY: identity}, receive, send)


def identity_of(request: Request) -> Identity:
    """Who asks. Raises KeyError on an open path: nobody knows there."""
    identity: Identity = request.scope[IDENTITY]
    return identity


def operators_only(endpoint: Endpoint) -> Endpoint:
    """The endpoint, for operators. Raises PermissionDenied for everybody else."""

    async def checked(request: Request) -> Response:
        if not identity_of(request).operator:
            raise PermissionDenied("only an operator's key may read this: make one by `swaa keys new --operator`")
        return await endpoint(request)

    return checked
