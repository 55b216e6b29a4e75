"""One RPC as its handler sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from services.gateway.identity import Identity


class Call:
    """Who asks, and what handlers use of gRPC's own context."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any], identity: Identity) -> None:
        self._context = context
        self.identity = identity

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """The call's headers, names in lower case."""
        metadata: Any = self._context.invocation_metadata() or ()  # the stubs know only one of its pairs
        return tuple(metadata)

    def time_remaining(self) -> float | None:
        """Seconds until the call's deadline; None: it has none, which the stubs forget."""
        return self._context.time_remaining()

    async def abort(
        self, code: grpc.StatusCode, details: str, trailing: Sequence[tuple[str, str | bytes]] = ()
    ) -> None:
        """End the call with this status. Raises grpc.aio.AbortError, always."""
        await self._context.abort(code, details, tuple(trailing))
