"""Who asks over gRPC: every call but the health service's has an identity before anything of it is read."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from services.errors import Unauthenticated
from services.gateway.auth.authenticator import Authenticator
from services.gateway.call import Call
from services.gateway.errors import Context, status_code, trailing_metadata
from services.gateway.identity import Identity

OPEN_SERVICE = "/grpc.health.v1.Health/"
IDENTIFIED_SERVICE = "/swaa.v1.LongContext/"
"""Whose handlers are told who asks. Reflection needs credentials, too, and tells the same to all who have some."""


class Authenticate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Gives handlers a `Call` instead of gRPC's context, or refuses the call with UNAUTHENTICATED."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """See grpc.aio.ServerInterceptor."""
        method: Any = handler_call_details.method
        if method.startswith(OPEN_SERVICE):
            return await continuation(handler_call_details)
        metadata: Any = handler_call_details.invocation_metadata or ()
        try:
            identity = self._authenticator.identify(metadata)
        except Unauthenticated as exc:
            return _refusing(exc)
        handler = await continuation(handler_call_details)
        return _telling(handler, identity) if method.startswith(IDENTIFIED_SERVICE) and handler else handler


def _refusing(error: Unauthenticated) -> grpc.RpcMethodHandler[Any, Any]:
    """Of the kind that answers before it has read anything; to clients, all kinds look the same."""

    async def refuse(requests: AsyncIterator[bytes], context: Context) -> None:
        await context.abort(status_code(error), str(error), trailing_metadata(error))

    return grpc.stream_stream_rpc_method_handler(refuse)


def _telling(handler: grpc.RpcMethodHandler[Any, Any], identity: Identity) -> grpc.RpcMethodHandler[Any, Any]:
    """The handler, told who asks."""

    def one(method: Any) -> Any:
        async def told(request: Any, context: Context) -> Any:
            return await method(request, Call(context, identity))

        return told

    def many(method: Any) -> Any:
        async def told(request: Any, context: Context) -> AsyncIterator[Any]:
            async with contextlib.aclosing(method(request, Call(context, identity))) as responses:
                async for response in responses:
                    yield response

        return told

    codec = (handler.request_deserializer, handler.response_serializer)
    if handler.request_streaming and handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(many(handler.stream_stream), *codec)
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler(one(handler.stream_unary), *codec)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(many(handler.unary_stream), *codec)
    return grpc.unary_unary_rpc_method_handler(one(handler.unary_unary), *codec)
