"""Sessions leave as archives and come back; nothing that is damaged, of another model or too large does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, get_args

import grpc
import pytest

from services.errors import SessionNotFound
from services.gateway import sessions
from services.gateway.auth.authenticator import Everybody
from services.gateway.catalog_source import FixedCatalog
from services.gateway.receiving import Intake
from services.gateway.server import SERVICE_NAME, GatewayServer
from services.gateway.session_admin import SessionAdmin
from services.gateway.sessions import SegmentSpool, SessionRpcs
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.sessions.policy import SessionPolicy
from services.sessions.store import KVFormat, Manifest, SessionStore
from swaa_runtime.recipe import Recipe
from tests.services.sessions.builders import SHAPE, Saved, asynchronous, make_state
from tests.services.sessions.fake_store import FakeSessionStore

from .builders import FakeContext, make_catalog

TENANT = FakeContext.identity.tenant


async def store_with(saved: Saved) -> FakeSessionStore:
    store = FakeSessionStore()
    await put(store, saved)
    return store


async def put(store: SessionStore, saved: Saved) -> None:
    for version in range(saved.manifest.version):
        await store.save(TENANT, replace(saved.manifest, version=version + 1), saved.segments, version)


POLICY = SessionPolicy(ttl_s=3600.0, checkpoint_tokens=8, prefix_ttl_s=60.0)


def make_rpcs(store: FakeSessionStore) -> SessionRpcs:
    facts: Any = SimpleNamespace(fingerprint="model-bf16", shape=SHAPE)
    return SessionRpcs(facts, store, SessionAdmin(store, POLICY, FixedCatalog(make_catalog())), Intake(1 << 30))


async def export(rpcs: SessionRpcs, session_id: str = "state") -> tuple[pb.Session, list[bytes]]:
    context: Any = FakeContext()
    request = pb.ExportSessionRequest(session_id=session_id)
    first, *rest = [message async for message in rpcs.ExportSession(request, context)]
    return first.session, [message.chunk for message in rest]


async def restore(rpcs: SessionRpcs, chunks: Iterable[bytes]) -> pb.Session:
    async def requests() -> AsyncIterator[pb.ImportSessionRequest]:
        for chunk in chunks:
            yield pb.ImportSessionRequest(chunk=chunk)

    context: Any = FakeContext()
    try:
        return await rpcs.ImportSession(requests(), context)
    except grpc.aio.AbortError:
        raise Refused(*context.status) from None


class Refused(Exception):
    """The status that an RPC ended with."""


@pytest.mark.parametrize("kv_format", get_args(KVFormat))
@asynchronous
async def test_a_session_comes_back_as_another_of_the_same_state(kv_format: KVFormat) -> None:
    saved = make_state(kv_format)
    source, target = await store_with(saved), FakeSessionStore()

    said, chunks = await export(make_rpcs(source))
    back = await restore(make_rpcs(target), chunks)

    assert (said.session_id, said.version) == ("state", 2)
    manifest = await target.get(TENANT, back.session_id)
    assert manifest.session_id == back.session_id != "state"
    assert manifest.created_at_s > saved.manifest.created_at_s
    assert manifest == replace(
        saved.manifest,
        session_id=back.session_id,
        version=1,
        created_at_s=manifest.created_at_s,
        updated_at_s=manifest.updated_at_s,
        expires_at_s=manifest.expires_at_s,
    )
    assert await target.fetch(TENANT, manifest.segments) == [
        saved.segments[ref.segment_id] for ref in saved.manifest.segments
    ]


@asynchronous
async def test_chunks_are_small_and_say_which_session_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "ARCHIVE_CHUNK_BYTES", 100)
    rpcs = make_rpcs(await store_with(make_state()))
    said, chunks = await export(rpcs)
    assert said == await rpcs.GetSession(pb.GetSessionRequest(session_id="state"), FakeContext())  # type: ignore[arg-type]
    assert max(map(len, chunks)) == 100
    assert (await restore(rpcs, chunks)).num_tokens == 600


REFUSED = {
    "another model": ({"model_fingerprint": "another"}, "INVALID_ARGUMENT", "model another': must be of this model"),
    "an unknown token": ({"token_ids": (1000, *range(599))}, "DATA_LOSS", "token 1000 of a vocabulary of 1000"),
    "another recipe": ({"recipe": Recipe()}, "DATA_LOSS", "not those its recipe needs"),
    "a layer too many": ({"recipe": Recipe(window=40, full_layers=(4,))}, "DATA_LOSS", "not for this model"),
    "another format": ({"kv_format": "int8"}, "DATA_LOSS", "bytes, expected"),
}


@pytest.mark.parametrize("what", REFUSED)
@asynchronous
async def test_what_does_not_fit_the_model_is_refused(what: str) -> None:
    changes, code, said = REFUSED[what]
    saved = make_state()
    _, chunks = await export(make_rpcs(await store_with(replace(saved, manifest=replace(saved.manifest, **changes)))))  # type: ignore[arg-type]
    target = FakeSessionStore()
    with pytest.raises(Refused) as caught:
        await restore(make_rpcs(target), chunks)
    status, details = caught.value.args
    assert (status.name, said in details) == (code, True), details
    assert not target.manifests
    assert not target.segments


@asynchronous
async def test_a_session_that_is_too_large_is_refused_before_its_segments_come(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = make_state()
    total = sum(ref.num_bytes for ref in saved.manifest.segments)
    rpcs = make_rpcs(await store_with(saved))
    _, (magic, length, manifest, *rest) = await export(rpcs)
    monkeypatch.setattr(sessions, "MAX_ARCHIVE_BYTES", total)
    await restore(rpcs, [magic, length, manifest, *rest])
    monkeypatch.setattr(sessions, "MAX_ARCHIVE_BYTES", total - 1)
    with pytest.raises(Refused, match=f"{total} bytes of KV': must be at most {total - 1} bytes"):
        await restore(rpcs, [magic, length, manifest])


@asynchronous
async def test_segments_that_are_stored_already_are_checked_all_the_same() -> None:
    store = await store_with(make_state())
    rpcs = make_rpcs(store)
    _, chunks = await export(rpcs)
    chunks[4] = bytes([chunks[4][0] ^ 1]) + chunks[4][1:]
    with pytest.raises(Refused, match="is not what was saved"):
        await restore(rpcs, chunks)
    assert len(store.manifests) == 1


class MovingStore(FakeSessionStore):
    """A store in which a session moves on, and loses its segments, once somebody fetches."""

    def __init__(self, then: Manifest | None) -> None:
        super().__init__()
        self.then = then

    async def fetch(self, tenant: str, refs: Any) -> list[bytes]:
        self.segments.clear()
        del self.manifests[tenant, "state"]
        if self.then is not None:
            self.manifests[tenant, "state"] = replace(self.then, expires_at_s=1e12)
        return await super().fetch(tenant, refs)


@pytest.mark.parametrize(
    ("then", "code"),
    [
        (None, grpc.StatusCode.NOT_FOUND),
        (replace(make_state().manifest, version=3), grpc.StatusCode.ABORTED),
        (make_state().manifest, grpc.StatusCode.DATA_LOSS),
    ],
)
@asynchronous
async def test_an_export_says_why_it_cannot_go_on(then: Manifest | None, code: grpc.StatusCode) -> None:
    saved = make_state()
    store = MovingStore(then)
    await put(store, saved)
    context: Any = FakeContext()
    messages = make_rpcs(store).ExportSession(pb.ExportSessionRequest(session_id="state"), context)
    with pytest.raises(grpc.aio.AbortError):
        [message async for message in messages]
    assert context.status is not None
    assert context.status[0] is code


@asynchronous
async def test_an_unknown_session_is_not_exported() -> None:
    context: Any = FakeContext()
    with pytest.raises(grpc.aio.AbortError):
        await anext(make_rpcs(FakeSessionStore()).ExportSession(pb.ExportSessionRequest(session_id="x"), context))
    assert context.status == (grpc.StatusCode.NOT_FOUND, str(SessionNotFound("no session 'x'")))


def test_a_spool_is_a_mapping_of_what_was_added() -> None:
    with SegmentSpool() as spool:
        for name in ("a", "b", "c"):
            spool.add(name, name.encode() * 3)
        assert dict(spool) == {"a": b"aaa", "b": b"bbb", "c": b"ccc"}
        assert spool["b"] == b"bbb"
        assert len(spool) == 3
        with pytest.raises(KeyError):
            spool["d"]


@asynchronous
async def test_an_import_that_is_no_message_is_an_invalid_argument() -> None:
    service: Any = make_rpcs(FakeSessionStore())
    server = GatewayServer(service, Everybody(), "127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            call = channel.stream_unary(f"/{SERVICE_NAME}/ImportSession", None, None)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(call(iter([b"\xff\xff"])), 120)
    finally:
        await server.stop(0)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "not a valid message" in str(caught.value.details())
