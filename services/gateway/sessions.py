"""The RPCs that read, copy and move sessions; none of them runs the model."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from typing import Self

from services.errors import SessionCorrupt, StaleSession
from services.gateway import messages
from services.gateway.call import Call
from services.gateway.errors import aborting
from services.gateway.identity import new_session_id
from services.gateway.limits import ARCHIVE_CHUNK_BYTES, MAX_ARCHIVE_BYTES
from services.gateway.receiving import Intake
from services.gateway.session_admin import DEFAULT_SESSIONS_LISTED, SessionAdmin
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.pb.swaa.v1 import long_context_pb2_grpc as pb_grpc
from services.replica.facts import ModelFacts
from services.sessions.archive import distinct_segments, read_archive, write_archive
from services.sessions.check import check_segments, check_tokens
from services.sessions.store import Manifest, SegmentRef, Store
from swaa_runtime.errors import InvalidRequest


class SessionRpcs(pb_grpc.LongContextServicer):
    """Stateless: sessions are the store's, and what model they are of is the replicas' to say."""

    def __init__(self, facts: ModelFacts, store: Store, admin: SessionAdmin, intake: Intake) -> None:
        self._intake = intake
        self._facts = facts
        self._admin = admin
        self._store = store

    async def GetSession(self, request: pb.GetSessionRequest, context: Call) -> pb.Session:
        """See the proto."""
        async with aborting(context):
            return messages.session_message(await self._admin.get(context.identity, request.session_id))

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Call) -> pb.ListSessionsResponse:
        """See the proto."""
        async with aborting(context):
            limit = request.limit if request.HasField("limit") else DEFAULT_SESSIONS_LISTED
            sessions = await self._admin.recent(context.identity, limit)
            return pb.ListSessionsResponse(sessions=[messages.session_message(manifest) for manifest in sessions])

    async def ForkSession(self, request: pb.ForkSessionRequest, context: Call) -> pb.Session:
        """See the proto."""
        async with aborting(context):
            return messages.session_message(await self._admin.fork(context.identity, request.session_id))

    async def DeleteSession(self, request: pb.DeleteSessionRequest, context: Call) -> pb.DeleteSessionResponse:
        """See the proto."""
        async with aborting(context):
            await self._admin.delete(context.identity, request.session_id)
            return pb.DeleteSessionResponse()

    async def ExportSession(
        self, request: pb.ExportSessionRequest, context: Call
    ) -> AsyncIterator[pb.ExportSessionResponse]:
        """See the proto."""
        async with aborting(context):
            tenant = context.identity.tenant
            manifest = await self._store.get(tenant, request.session_id)
            yield pb.ExportSessionResponse(session=messages.session_message(manifest))

            async def fetch(ref: SegmentRef) -> bytes:
                return await self._fetch(tenant, manifest, ref)

            async with contextlib.aclosing(write_archive(manifest, fetch)) as pieces:
                async for piece in pieces:
                    for start in range(0, len(piece), ARCHIVE_CHUNK_BYTES):
                        yield pb.ExportSessionResponse(chunk=piece[start : start + ARCHIVE_CHUNK_BYTES])

    async def ImportSession(
        self, request_iterator: AsyncIterator[pb.ImportSessionRequest], context: Call
    ) -> pb.Session:
        """See the proto."""
        async with aborting(context):
            with self._intake.importing() as pace, SegmentSpool() as spool:
                requests = pace.each(request_iterator, lambda request: len(request.chunk))
                manifest, segments = await read_archive(request.chunk async for request in requests)
                self._check_import(manifest)
                async for ref, data in segments:
                    spool.add(ref.segment_id, data)
                imported = replace(
                    manifest, session_id=new_session_id(), version=1, created_at_s=time.time(), idempotency_key=""
                )
                saved = await self._admin.save_import(context.identity, imported, spool)
            return messages.session_message(saved)

    async def _fetch(self, tenant: str, manifest: Manifest, ref: SegmentRef) -> bytes:
        """One segment. Raises StaleSession or SessionNotFound if it is gone because the session moved on."""
        try:
            [data] = await self._store.fetch(tenant, [ref])
        except SessionCorrupt:
            now = await self._store.get(tenant, manifest.session_id)
            if now.version != manifest.version:
                raise StaleSession(
                    f"session {manifest.session_id!r} moved from version {manifest.version} to {now.version}"
                ) from None
            raise
        return data

    def _check_import(self, manifest: Manifest) -> None:
        """Raise InvalidRequest for a session that this service does not take, SessionCorrupt for one that is none."""
        if manifest.model_fingerprint != self._facts.fingerprint:
            raise InvalidRequest("chunk", f"a session of model {manifest.model_fingerprint}", "must be of this model")
        num_bytes = sum(ref.num_bytes for ref in distinct_segments(manifest))
        if num_bytes > MAX_ARCHIVE_BYTES:
            raise InvalidRequest("chunk", f"{num_bytes} bytes of KV", f"must be at most {MAX_ARCHIVE_BYTES} bytes")
        check_tokens(manifest, self._facts.shape)
        check_segments(manifest, self._facts.shape)


class SegmentSpool(Mapping[str, bytes]):
    """Segments by id, in a temporary file without a name: what is in memory is what is just being read."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by `__exit__`
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0

    def add(self, segment_id: str, data: bytes) -> None:
        """Put a segment at the end."""
        self._file.write(data)
        self._places[segment_id] = (self._end, len(data))
        self._end += len(data)

    def __getitem__(self, segment_id: str) -> bytes:
        start, num_bytes = self._places[segment_id]
        return os.pread(self._file.fileno(), num_bytes, start)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()
