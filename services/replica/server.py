"""A replica's own gRPC server: turns come in and events go out here, straight from and to gateways.

A gateway that reads slowly fills HTTP/2's window; that stops this end's writes, which pauses the request in the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import grpc

from services.pb.swaa.v1 import replica_pb2 as pb
from services.pb.swaa.v1 import replica_pb2_grpc as pb_grpc
from services.replica.replica import Replica
from services.replica.wire import RUN_OPTIONS, TOKENIZER_FILES, job_from, run_event
from services.telemetry.tracing import Headers, trace_headers
from services.wire_errors import error_metadata
from swaa_runtime.errors import InvalidRequest, SwaaError

logger = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class ReplicaServicer(pb_grpc.ReplicaServicer):
    """swaa.v1.Replica for one replica, whose model and tokenizer are in `model_folder`."""

    def __init__(self, replica: Replica, model_folder: Path) -> None:
        self._replica = replica
        self._model_folder = model_folder

    async def Run(self, request: pb.RunRequest, context: Context) -> AsyncIterator[pb.RunEvent]:
        """See the proto."""
        try:
            trace = trace_headers(cast("Headers", context.invocation_metadata() or ()))
            job = replace(job_from(request, _deadline_s(context)), trace_headers=trace)
            async with contextlib.aclosing(self._replica.generate(job)) as events:
                async for event in events:
                    yield run_event(event)
        except SwaaError as exc:
            await context.abort(grpc.StatusCode.ABORTED, str(exc), error_metadata(exc))
        except (asyncio.CancelledError, grpc.aio.AbortError, GeneratorExit):
            raise
        except Exception as exc:
            logger.exception("unexpected error")
            error = SwaaError(f"unexpected {type(exc).__name__}; see the replica's log")
            await context.abort(grpc.StatusCode.INTERNAL, str(error), error_metadata(error))

    async def Tokenizer(self, request: pb.TokenizerRequest, context: Context) -> AsyncIterator[pb.TokenizerFile]:
        """See the proto."""
        for name in TOKENIZER_FILES:
            path = self._model_folder / name
            if path.is_file():
                yield pb.TokenizerFile(name=name, data=await asyncio.to_thread(path.read_bytes))


class ReplicaServer:
    """A listening replica."""

    def __init__(
        self,
        replica: Replica,
        model_folder: Path,
        host: str,
        port: int,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        """Port 0 picks a free one. Without credentials there is no TLS. Raises InvalidRequest if it cannot listen."""
        self._server = grpc.aio.server(options=(*RUN_OPTIONS, ("grpc.so_reuseport", 0)))
        pb_grpc.add_ReplicaServicer_to_server(ReplicaServicer(replica, model_folder), self._server)  # type: ignore[no-untyped-call]
        listen = f"{host}:{port}"
        try:
            if credentials is None:
                bound_port = self._server.add_insecure_port(listen)
            else:
                bound_port = self._server.add_secure_port(listen, credentials)
            self.address = f"{host}:{bound_port}"
        except RuntimeError:
            raise InvalidRequest(
                "replica_host:replica_port", listen, "cannot be listened on; the port must be free"
            ) from None

    async def start(self) -> None:
        """Serve."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Take no new turns, let running ones finish for so long, then end them."""
        await self._server.stop(grace_s)


def _deadline_s(context: Context) -> float | None:
    remaining_s: float | None = context.time_remaining()  # the stubs forget that there may be none
    return None if remaining_s is None else time.monotonic() + remaining_s
