"""The gRPC server around the service: health, reflection, limits, and a clear answer to bytes that are no message."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio  # type: ignore[attr-defined]
from grpc_reflection.v1alpha import reflection

from services.gateway.auth.authenticator import Authenticator
from services.gateway.authentication import Authenticate
from services.gateway.errors import Context
from services.gateway.limits import MAX_CALLS, READ_TIMEOUT_S, SERVER_OPTIONS
from services.gateway.service import LongContextService
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.pb.swaa.v1 import long_context_pb2_grpc as pb_grpc
from swaa_runtime.errors import InvalidRequest

MAX_CONNECTIONS = 1024
STATUS_TIMEOUT_S = 1.0
SERVICE_NAME = pb.DESCRIPTOR.services_by_name["LongContext"].full_name


class Malformed:
    """Stands in for a request whose bytes could not be decoded."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class RejectMalformed(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Answers undecodable requests with INVALID_ARGUMENT; gRPC itself would say INTERNAL.

    Decoding fails for damaged messages, and for `string` fields that are not UTF-8. Streams that nobody reads end.
    """

    def __init__(self, read_timeout_s: float) -> None:
        self._read_timeout_s = read_timeout_s

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        decode = handler.request_deserializer

        def lenient(data: bytes) -> Any:
            try:
                return decode(data)
            except DecodeError as exc:
                return Malformed(str(exc))

        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                _pieces(handler.stream_stream, self._read_timeout_s), lenient, handler.response_serializer
            )
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(
                _collecting(handler.stream_unary), lenient, handler.response_serializer
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _stream(handler.unary_stream, self._read_timeout_s), lenient, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(_unary(handler.unary_unary), lenient, handler.response_serializer)


def _message(malformed: Malformed) -> str:
    return f"request is not a valid message (text must be UTF-8): {malformed.reason}"


def _unary(method: Any) -> Any:
    async def checked(request: Any, context: Context) -> Any:
        if isinstance(request, Malformed):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _message(request))
        return await method(request, context)

    return checked


def _stream(method: Any, read_timeout_s: float) -> Any:
    if not inspect.isasyncgenfunction(method):
        return _unary(method)  # it writes its answers to the context, as health's Watch does

    async def checked(request: Any, context: Context) -> AsyncIterator[Any]:
        if isinstance(request, Malformed):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _message(request))
        async for response in _taken(method(request, context), context, read_timeout_s):
            yield response

    return checked


def _pieces(method: Any, read_timeout_s: float) -> Any:
    async def checked(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async for response in _taken(method(_well_formed(requests, context), context), context, read_timeout_s):
            yield response

    return checked


def _collecting(method: Any) -> Any:
    async def checked(requests: AsyncIterator[Any], context: Context) -> Any:
        return await method(_well_formed(requests, context), context)

    return checked


async def _well_formed(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, Malformed):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _message(request))
        yield request


async def _taken(responses: AsyncIterator[Any], context: Context, timeout_s: float) -> AsyncIterator[Any]:
    """The responses, as long as the client reads: gRPC asks for the next once there is room to write it.

    The call of a client that lets it wait for longer is ended, and all that it holds is freed.
    """
    call, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert call is not None  # noqa: S101 - gRPC runs every call in a task
    endings: list[asyncio.Task[None]] = []  # nobody else keeps them

    def end() -> None:
        endings.append(loop.create_task(_cut_off(call, context, f"nothing was read for {timeout_s:.0f} s")))

    async for response in responses:
        unread = loop.call_later(timeout_s, end)
        try:
            yield response
        finally:
            unread.cancel()


async def _cut_off(call: asyncio.Task[Any], context: Context, reason: str) -> None:
    """End a call whose task waits to write. Its status is behind what is unread: the client may still come to it."""
    with contextlib.suppress(TimeoutError, grpc.aio.AbortError):
        async with asyncio.timeout(STATUS_TIMEOUT_S):
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, reason)
    call.cancel()


class GatewayServer:
    """A listening gateway."""

    def __init__(
        self,
        service: LongContextService,
        authenticator: Authenticator,
        listen: str,
        credentials: grpc.ServerCredentials | None = None,
        max_connections: int = MAX_CONNECTIONS,
        read_timeout_s: float = READ_TIMEOUT_S,
        max_calls: int = MAX_CALLS,
    ) -> None:
        """`listen` is host:port; port 0 picks a free one. Without credentials there is no TLS.

        More than `max_connections` at a time are closed at once; more than `max_calls` are refused.

        Raises:
            InvalidRequest: that cannot be listened on.
        """
        options = (
            *SERVER_OPTIONS,
            ("grpc.max_allowed_incoming_connections", max_connections),
            ("grpc.so_reuseport", 0),  # two services on one port would each get some requests
        )
        interceptors = [Authenticate(authenticator), RejectMalformed(read_timeout_s)]
        self._server = grpc.aio.server(interceptors=interceptors, options=options, maximum_concurrent_rpcs=max_calls)
        pb_grpc.add_LongContextServicer_to_server(service, self._server)  # type: ignore[no-untyped-call]
        self._health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE_NAME, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        try:
            if credentials is None:
                self.port = self._server.add_insecure_port(listen)
            else:
                self.port = self._server.add_secure_port(listen, credentials)
        except RuntimeError:
            raise InvalidRequest(
                "listen", listen, "cannot be listened on; it must be host:port, and the port free"
            ) from None

    async def start(self) -> None:
        """Serve, and say so in the health service."""
        await self._server.start()
        await self.set_serving(True)

    async def set_serving(self, serving: bool, alive: bool = True) -> None:
        """What the health service answers for the service by name (readiness), and for the server (liveness, "")."""
        for name, well in (("", alive), (SERVICE_NAME, serving)):
            status = health_pb2.HealthCheckResponse.SERVING if well else health_pb2.HealthCheckResponse.NOT_SERVING
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Take no new requests, let running ones finish for so long, then end them."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
