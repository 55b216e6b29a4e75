"""A request's `authorization` to an identity. What is wrong with one is not told to whoever sent it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

from services.config import ServeConfig
from services.errors import Unauthenticated
from services.gateway.auth.api_keys import PREFIX, KeyRing
from services.gateway.auth.key_file import read_key_ring
from services.gateway.auth.tokens import TokenRules, TokenVerifier, read_verifier
from services.gateway.identity import ANONYMOUS, Identity
from services.reloaded import Reloaded
from services.telemetry.metrics import AuthenticationMetrics

T = TypeVar("T")

AUTHORIZATION_HEADER = "authorization"
SCHEME = "bearer"

MAX_CREDENTIAL_CHARACTERS = 8192
REASONS = ("missing", "malformed", "unknown", "expired", "revoked", "token")
MESSAGE = "credentials are missing or not valid: send the header `authorization: Bearer <API key or token>`"


class Authenticator(Protocol):
    """Knows who asks."""

    def identify(self, headers: Iterable[tuple[str, str | bytes]]) -> Identity:
        """Who sent these headers, names in lower case. Raises Unauthenticated."""
        ...

    async def watch(self) -> None:
        """Keep what it knows up to date, for ever. Cancel it to end it."""
        ...

    @property
    def file_errors(self) -> dict[str, str]:
        """By setting, why what is in its file now is not used; empty if it is."""
        ...


class Everybody:
    """Authenticates nobody: all are one tenant. For a service that only this machine can reach."""

    def identify(self, headers: Iterable[tuple[str, str | bytes]]) -> Identity:
        """See `Authenticator`. Whatever credential there is, is not looked at."""
        return ANONYMOUS

    async def watch(self) -> None:
        """See `Authenticator`."""
        await asyncio.Event().wait()

    @property
    def file_errors(self) -> dict[str, str]:
        """See `Authenticator`."""
        return {}


class Credentials:
    """Takes API keys, tokens, or both."""

    def __init__(
        self,
        keys: Reloaded[KeyRing] | None,
        tokens: Reloaded[TokenVerifier] | None,
        metrics: AuthenticationMetrics,
    ) -> None:
        self._keys = keys
        self._tokens = tokens
        self._metrics = metrics

    def identify(self, headers: Iterable[tuple[str, str | bytes]]) -> Identity:
        """See `Authenticator`."""
        try:
            return self._checked(headers)
        except Unauthenticated as exc:
            self._metrics.refused.labels(exc.reason).inc()
            raise

    def _checked(self, headers: Iterable[tuple[str, str | bytes]]) -> Identity:
        given = [value for name, value in headers if name == AUTHORIZATION_HEADER]
        if not given:
            raise Unauthenticated(MESSAGE, "missing")
        value = given[0]
        scheme, _, credential = (value if isinstance(value, str) else value.decode("latin-1")).strip().partition(" ")
        if len(given) > 1 or scheme.lower() != SCHEME or not 0 < len(credential) <= MAX_CREDENTIAL_CHARACTERS:
            raise Unauthenticated(MESSAGE, "malformed")
        identity, reason = self._identify(credential.strip())
        if identity is None:
            raise Unauthenticated(MESSAGE, reason)
        return identity

    def _identify(self, credential: str) -> tuple[Identity | None, str]:
        """Keys have a form that no token has: so it is known which of the two a credential would be."""
        if self._tokens is not None and not credential.startswith(PREFIX):
            return self._tokens.current.identify(credential), "token"
        if self._keys is not None:
            return self._keys.current.identify(credential, datetime.now(UTC))
        return None, "unknown"

    async def watch(self) -> None:
        """See `Authenticator`."""
        await asyncio.gather(*(file.watch() for file in (self._keys, self._tokens) if file is not None))

    @property
    def file_errors(self) -> dict[str, str]:
        """See `Authenticator`."""
        files = {"api_keys_file": self._keys, "jwt_keys_file": self._tokens}
        return {name: file.error for name, file in files.items() if file is not None}


def authenticator_of(config: ServeConfig, metrics: AuthenticationMetrics) -> Authenticator:
    """The authenticator that settings ask for. Raises InvalidRequest for a file or a setting that cannot be used."""
    if not config.authenticates:
        return Everybody()
    keys = tokens = None
    if config.api_keys_file is not None:
        keys = _kept(config.api_keys_file, read_key_ring)
    if config.jwt_keys_file is not None:
        tokens = _kept(config.jwt_keys_file, functools.partial(read_verifier, rules=TokenRules.of(config)))
    return Credentials(keys, tokens, metrics)


def _kept(file: Path, read: Callable[[Path], T]) -> Reloaded[T]:
    return Reloaded("file", [file], lambda: (read(file), [file]))
