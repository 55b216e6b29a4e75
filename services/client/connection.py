"""A channel to the service, and calls over it: deadlines, retries, errors of our own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.client.errors import ClientError, DeadlineExceeded, error_of
from services.client.options import Metadata
from services.client.retry import Repeat, Retry
from services.gateway.limits import GRPC_OPTIONS
from services.pb.swaa.v1 import long_context_pb2_grpc as pb_grpc

T = TypeVar("T")

HEALTH_INTERVAL_S = 0.1
OPTIONS = (*GRPC_OPTIONS, ("grpc.lb_policy_name", "round_robin"))
"""Of several gateways behind one name, all are used."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a call must have ended, on the clock of time.monotonic; None: at no particular time."""

    at_s: float | None

    @classmethod
    def after(cls, timeout_s: float | None) -> Deadline:
        """So many seconds from now."""
        return cls(None if timeout_s is None else time.monotonic() + timeout_s)

    def remaining_s(self) -> float | None:
        """Seconds left, above 0; None: any time. Raises DeadlineExceeded."""
        if self.at_s is None:
            return None
        remaining_s = self.at_s - time.monotonic()
        if remaining_s <= 0:
            raise DeadlineExceeded("timeout_s passed before the call was sent")
        return remaining_s


class Connection:
    """Opens its channel on first use, in the event loop that uses it."""

    def __init__(
        self, target: str, credentials: grpc.ChannelCredentials | None, metadata: Metadata, retry: Retry
    ) -> None:
        self._target = target
        self._credentials = credentials
        self._metadata = tuple(metadata)
        self._retry = retry
        self._rng = random.Random()

    @functools.cached_property
    def stub(self) -> Any:
        """The generated stub."""
        return pb_grpc.LongContextStub(self._channel)  # type: ignore[no-untyped-call]

    @functools.cached_property
    def _channel(self) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._target, options=OPTIONS)
        return grpc.aio.secure_channel(self._target, self._credentials, options=OPTIONS)

    async def close(self) -> None:
        """End all calls and the channel."""
        await self._channel.close(None)

    async def unary(
        self,
        call: Callable[..., Awaitable[T]],
        request: Any,
        deadline: Deadline,
        metadata: Metadata = (),
        repeat: Repeat = "always",
    ) -> T:
        """A call with one answer. Raises ClientError.

        Args:
            call: of `stub`. request: the message, or an iterator of messages, which can be sent once only.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                return await call(request, timeout=deadline.remaining_s(), metadata=(*self._metadata, *metadata))
            except grpc.aio.AioRpcError as exc:
                await self._pause(error_of(exc), attempt, deadline, repeat)

    async def stream(
        self,
        start: Callable[..., Any],
        deadline: Deadline,
        metadata: Metadata = (),
        *,
        is_prelude: Callable[[Any], bool] = lambda message: False,
    ) -> AsyncGenerator[Any, None]:
        """A call with many answers; closing the generator cancels it. Raises ClientError.

        Args:
            start: makes the call, given `timeout` and `metadata`: once for each attempt.
            is_prelude: whether a message may come again, as the call is tried again: until the first that may not.
        """
        attempt, in_prelude = 0, True
        while True:
            attempt += 1
            call = start(timeout=deadline.remaining_s(), metadata=(*self._metadata, *metadata))
            try:
                async for message in call:
                    in_prelude = in_prelude and is_prelude(message)
                    yield message
                return
            except grpc.aio.AioRpcError as exc:
                error = error_of(exc)
                if not in_prelude:
                    raise error from exc
            finally:
                call.cancel()
            await self._pause(error, attempt, deadline, "always")

    async def _pause(self, error: ClientError, attempt: int, deadline: Deadline, repeat: Repeat) -> None:
        """Wait until the call may be tried again. Raises the error if it may not."""
        remaining_s = None if deadline.at_s is None else deadline.at_s - time.monotonic()
        wait_s = self._retry.wait_s(error, attempt, remaining_s, repeat, self._rng)
        if wait_s is None:
            raise error
        await asyncio.sleep(wait_s)

    async def wait_until_serving(self, timeout_s: float) -> None:
        """Return when the health service says SERVING. Raises DeadlineExceeded."""
        health = health_pb2_grpc.HealthStub(self._channel)
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        answer = await health.Check(health_pb2.HealthCheckRequest(), metadata=self._metadata)
                        if answer.status == health_pb2.HealthCheckResponse.SERVING:
                            return
                    await asyncio.sleep(HEALTH_INTERVAL_S)
        except TimeoutError:
            raise DeadlineExceeded(f"{self._target} did not serve within {timeout_s} s") from None
