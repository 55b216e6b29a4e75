"""A client of the service: the calls of swaa.v1.LongContext, with the headers as arguments."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.gateway.limits import GRPC_OPTIONS, MAX_PROMPT_BYTES
from services.gateway.sla import (
    MIN_QUALITY_HEADER,
    PRIORITY_HEADER,
    RECIPE_HEADER,
    SESSION_HEADER,
    SLA_HEADER,
    STRICT_HEADER,
    TPOT_HEADER,
    TTFT_HEADER,
)
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.pb.swaa.v1 import long_context_pb2_grpc as pb_grpc
from swaa_runtime.errors import InvalidRequest

PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Headers:
    """Per-request headers (see the proto); None leaves one out."""

    sla: str | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    min_quality: float | None = None
    session: str | None = None
    priority: int | None = None
    recipe: str | None = None
    strict: bool = False

    def to_metadata(self) -> tuple[tuple[str, str], ...]:
        """As gRPC takes them. Raises InvalidRequest for what no header can carry."""
        given = {
            SLA_HEADER: self.sla,
            TTFT_HEADER: self.ttft_ms,
            TPOT_HEADER: self.tpot_ms,
            MIN_QUALITY_HEADER: self.min_quality,
            SESSION_HEADER: self.session,
            PRIORITY_HEADER: self.priority,
            RECIPE_HEADER: self.recipe,
            STRICT_HEADER: "true" if self.strict else None,
        }
        metadata = tuple((name, str(value)) for name, value in given.items() if value is not None)
        for name, value in metadata:
            if not (value.isascii() and value.isprintable()):
                raise InvalidRequest(name, value, "must be printable ASCII")
        return metadata


class LongContextClient:
    """An open channel. Use as an async context manager. All calls raise grpc.aio.AioRpcError."""

    def __init__(self, target: str) -> None:
        """`target` is host:port."""
        self._channel = grpc.aio.insecure_channel(target, options=GRPC_OPTIONS)
        self.stub = pb_grpc.LongContextStub(self._channel)  # type: ignore[no-untyped-call]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close(None)

    async def wait_until_serving(self, timeout_s: float) -> None:
        """Return when the health service says SERVING. Raises TimeoutError."""
        health = health_pb2_grpc.HealthStub(self._channel)
        async with asyncio.timeout(timeout_s):
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    answer = await health.Check(health_pb2.HealthCheckRequest())
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                await asyncio.sleep(0.1)

    async def generate(
        self,
        prompt: pb.Prompt,
        sampling: pb.Sampling | None = None,
        headers: Headers | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Stream one turn. A text too long for one message is uploaded in pieces."""
        metadata = (headers or Headers()).to_metadata()
        if len(prompt.text.encode()) > MAX_PROMPT_BYTES:
            call = self.stub.GenerateUpload(_pieces(prompt.text, sampling), metadata=metadata, timeout=timeout_s)
        else:
            request = pb.GenerateRequest(prompt=prompt, sampling=sampling)
            call = self.stub.Generate(request, metadata=metadata, timeout=timeout_s)
        try:
            async for response in call:
                yield response
        finally:
            call.cancel()

    async def export_session(self, session_id: str) -> AsyncGenerator[bytes, None]:
        """The session as the bytes of a file. What came before an error is no session."""
        call = self.stub.ExportSession(pb.ExportSessionRequest(session_id=session_id))
        try:
            async for response in call:
                if response.WhichOneof("part") == "chunk":
                    yield response.chunk
        finally:
            call.cancel()

    async def import_session(self, file: IO[bytes]) -> pb.Session:
        """Open a session from such a file; it is read from where it is to its end."""
        pieces = (pb.ImportSessionRequest(chunk=chunk) for chunk in iter(lambda: file.read(PIECE_BYTES), b""))
        session: pb.Session = await self.stub.ImportSession(pieces)
        return session


def _pieces(text: str, sampling: pb.Sampling | None) -> Iterator[pb.GenerateUploadRequest]:
    yield pb.GenerateUploadRequest(request=pb.GenerateRequest(sampling=sampling))
    data = text.encode()
    for start in range(0, len(data), PIECE_BYTES):
        yield pb.GenerateUploadRequest(text=data[start : start + PIECE_BYTES])
