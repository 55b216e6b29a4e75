"""Targets that are a running service: every RPC and every route, from bytes that are nothing to turns that run.

A status of INTERNAL or UNKNOWN, an answer of 500, and a service that is gone are failures. So is, after the run, memory
or a key of Redis that nobody gave back.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import re
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import httpx
import redis
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from services.gateway.http.chat import ChatFields
from services.gateway.http.completions import CompletionFields
from services.gateway.http.description import endpoints
from services.gateway.http.schema import IGNORED, NEUTRAL
from services.pb.swaa.v1 import long_context_pb2 as pb
from tests.walk.harness import Service, run_turn

from .inputs import HEADER_LISTS, JSON_VALUES, TEXTS, damaged, messages, serialized
from .target import Target

CALL_TIMEOUT_S = 2.0
EVENTS_READ = 6
"""Of a stream, which is then cancelled: most turns that run would run for long."""

BUGS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED)
RPCS = {method.name: method for method in pb.DESCRIPTOR.services_by_name["LongContext"].methods}
OPEN_SESSION = (("x-swaa-session", "new"),)


class WireBug(AssertionError):
    """An answer that no input may get."""


class Wire:
    """A service to send things to, and the sessions that it was found to have."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._session_ids: list[str] = []
        self._rng = random.Random(0)
        self._http = httpx.Client(base_url=f"http://{service.http_address}", timeout=CALL_TIMEOUT_S)

    def targets(self) -> list[Target]:
        """All of them."""
        calls = [Target(f"grpc-{name}", self._calls(name), self._call) for name in RPCS]
        archive = self._archive()
        imports = st.tuples(damaged(st.just(archive)), st.integers(500, 1 << 16))
        return [
            *calls,
            Target("grpc-import", imports, self._import),
            Target("http-fields", self._fields(), self._post),
            Target("http-bodies", self._bodies(), self._post),
            Target("http-paths", st.tuples(st.sampled_from(("GET", "POST", "DELETE", "PUT")), TEXTS), self._path),
            Target("http-bytes", damaged(self._requests()), self._raw),
        ]

    def _calls(self, name: str) -> st.SearchStrategy[Any]:
        method = RPCS[name]
        one = serialized(GetMessageClass(method.input_type))
        given = st.lists(one, max_size=4) if method.client_streaming else one.map(lambda data: [data])
        return st.tuples(st.just(name), given, HEADER_LISTS)

    def _call(self, given: tuple[str, Sequence[bytes], Any]) -> None:
        name, parts, headers = given
        method, channel = RPCS[name], self._service.channel
        path = f"/{method.containing_service.full_name}/{name}"
        told: dict[str, Any] = {
            "metadata": [*self._known(headers), *self._session_headers()],
            "timeout": CALL_TIMEOUT_S,
        }
        try:
            if method.client_streaming:
                kind: Any = channel.stream_stream if method.server_streaming else channel.stream_unary
                answer: Any = kind(path, None, None)(iter(parts), **told)
            else:
                one: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
                answer = one(path, None, None)(parts[0], **told)
            if method.server_streaming:
                for data in itertools.islice(answer, EVENTS_READ):
                    self._learn(name, data)
                answer.cancel()
        except grpc.RpcError as exc:
            self._check(exc)

    def _check(self, error: Any) -> None:
        if error.code() in BUGS or "Connection refused" in str(error.details()):
            raise WireBug(f"{error.code()}: {error.details()}") from None

    def _learn(self, name: str, data: bytes) -> None:
        if name not in ("Generate", "GenerateUpload"):
            return
        event = pb.GenerateResponse.FromString(data)
        if event.HasField("accepted"):
            self._session_ids = [*self._session_ids[-20:], event.accepted.session_id]

    def _known(self, headers: Any) -> list[tuple[str, str]]:
        return [(name, value.encode("ascii", "ignore").decode()) for name, value in headers]

    def _session_headers(self) -> list[tuple[str, str]]:
        """Now and then a session that there is, or was."""
        if self._session_ids and self._rng.random() < 0.2:
            return [("x-swaa-session", self._rng.choice(self._session_ids) or "new")]
        return []

    def _archive(self) -> bytes:
        """Of a session that the service has saved."""
        turn = run_turn(self._service, "The ship came in", OPEN_SESSION, max_tokens=2)
        exported = self._service.stub.ExportSession(pb.ExportSessionRequest(session_id=turn.session_id), timeout=120)
        return b"".join(part.chunk for part in exported)

    def _import(self, given: tuple[bytes, int]) -> None:
        data, size = given
        chunks = (pb.ImportSessionRequest(chunk=data[at : at + size]) for at in range(0, len(data), size))
        try:
            self._service.stub.ImportSession(chunks, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as exc:
            self._check(exc)

    def _fields(self) -> st.SearchStrategy[Any]:
        """Bodies that have the fields of a turn, with values that are right, at an edge, or of another type."""
        names = st.sampled_from(
            sorted({*ChatFields.model_fields, *CompletionFields.model_fields, *NEUTRAL, *IGNORED, "more"})
        )
        few = st.integers(1, 3)
        message = st.fixed_dictionaries(
            {"role": TEXTS, "content": TEXTS},
            optional={"tool_calls": JSON_VALUES, "name": TEXTS, "tool_call_id": TEXTS, "annotations": JSON_VALUES},
        )
        right = {"model": st.just("smollm2"), "max_tokens": few}
        prompts = TEXTS | st.lists(st.integers(0, 49152), max_size=9)
        chat = st.fixed_dictionaries({**right, "messages": st.lists(message, max_size=3)})
        text = st.fixed_dictionaries({**right, "prompt": prompts})
        extra: dict[str, Any] = {"stream": True}
        more = st.dictionaries(names, JSON_VALUES, max_size=3) | st.just(extra)
        bodies = st.tuples(chat | text, more).map(lambda pair: {**pair[0], **pair[1]})
        paths = st.sampled_from(("/v1/chat/completions", "/v1/completions", "/api/plan"))
        return st.tuples(paths, bodies.map(lambda body: json.dumps(body).encode()), HEADER_LISTS)

    def _bodies(self) -> st.SearchStrategy[Any]:
        paths = st.sampled_from([path for (method, path), each in endpoints().items() if each.body is not None])
        plans = messages(pb.PlanRequest).map(_as_json)
        any_json = JSON_VALUES.map(lambda value: json.dumps(value).encode())
        return st.tuples(paths, plans | damaged(plans) | any_json | st.binary(max_size=50), HEADER_LISTS)

    def _post(self, given: tuple[str, bytes, Any]) -> None:
        path, body, headers = given
        pairs = [*self._known(headers), ("content-type", "application/json"), *self._session_headers()]
        self._http_call("POST", path, content=body, headers=pairs)

    def _path(self, given: tuple[str, str]) -> None:
        method, text = given
        quoted = re.sub(r"[^\x21-\x7e]|[#?]", lambda match: "".join(f"%{byte:02x}" for byte in match[0].encode()), text)
        for path in ("/v1/models/", "/api/sessions/", "/api/sessions?limit=", "/console/"):
            self._http_call(method, path + quoted)
        self._http_call("POST", f"/api/sessions/{quoted}/fork")

    def _http_call(self, method: str, path: str, **options: Any) -> None:
        try:
            status = self._http.request(method, path, **options).status_code
        except (httpx.InvalidURL, httpx.LocalProtocolError, httpx.TimeoutException):
            return
        except httpx.RemoteProtocolError:
            return
        if status == 500:
            raise WireBug(f"{method} {path} is answered with 500")

    def _requests(self) -> st.SearchStrategy[bytes]:
        """Requests as they are on the wire."""
        body = json.dumps({"model": "smollm2", "prompt": "x", "max_tokens": 1}).encode()
        head = "content-type: application/json\r\nhost: x\r\n"
        whole = f"POST /v1/completions HTTP/1.1\r\n{head}content-length: {len(body)}\r\n\r\n".encode() + body
        chunked = f"POST /v1/completions HTTP/1.1\r\n{head}transfer-encoding: chunked\r\n\r\n".encode()
        chunked += f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
        return st.sampled_from((whole, chunked, b"GET /api/info HTTP/1.1\r\nhost: x\r\n\r\n", whole + whole))

    def _raw(self, data: bytes) -> None:
        host, _, port = self._service.http_address.rpartition(":")
        with (
            contextlib.suppress(OSError),
            socket.create_connection((host, int(port)), timeout=CALL_TIMEOUT_S) as connection,
        ):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            if connection.recv(4096).startswith(b"HTTP/1.1 500"):
                raise WireBug("raw bytes are answered with 500")

    def leftovers(self) -> dict[str, int]:
        """What is not given back once all sessions are deleted: blocks of KV, and keys of Redis that never expire.

        The numbers of leases (`fence`) outlive their sessions for a day, segments the expired ones for minutes.
        """
        while sessions := self._service.stub.ListSessions(pb.ListSessionsRequest(limit=1000), timeout=120).sessions:
            for session in sessions:
                with contextlib.suppress(grpc.RpcError):
                    self._service.stub.DeleteSession(
                        pb.DeleteSessionRequest(session_id=session.session_id), timeout=120
                    )
        with redis.Redis.from_url(self._service.redis_url) as store:
            return {
                "kv_blocks": self.used_blocks_soon(),
                "redis_keys": _soon_none(lambda: sum(store.pttl(key) == -1 for key in store.scan_iter("swaa:*"))),
            }

    def used_blocks_soon(self) -> int:
        """Blocks of KV memory that are in use still once running turns had their time to end."""
        return _soon_none(self._used_blocks)

    def _used_blocks(self) -> int:
        page = httpx.get(f"http://{self._service.http_address}/metrics", timeout=120).text
        found = re.findall(r'^swaa_kv_blocks\{use="(\w+)"\} (\S+)$', page, re.MULTILINE)
        return int(sum(float(count) for use, count in found if use not in ("free", "parked")))

    def bugs_in_log(self) -> int:
        """Unexpected errors that the service has logged."""
        return self._service.log.count("unexpected error") + self._service.log.count("Exception in ASGI")

    def close(self) -> None:
        self._http.close()


def _as_json(message: Message) -> bytes:
    from google.protobuf.json_format import MessageToJson

    return MessageToJson(message, preserving_proto_field_name=True).encode()


def _soon_none(count: Any, patience_s: float = 120.0) -> int:
    until_s = time.monotonic() + patience_s
    while (left := int(count())) and time.monotonic() < until_s:
        time.sleep(0.5)
    return left


def described(service: Service) -> Iterator[Target]:
    """What schemathesis makes of the service's own description, of each operation: right requests and wrong ones."""
    import schemathesis
    from schemathesis import GenerationMode

    base_url = f"http://{service.http_address}"
    schema: Any = schemathesis.openapi.from_dict(httpx.get(f"{base_url}/openapi.json", timeout=120).json())

    def call(case: Any) -> None:
        try:
            status = case.call(base_url=base_url, timeout=CALL_TIMEOUT_S).status_code
        except OSError:  # requests' errors: it went away, or cannot be sent
            return
        if status == 500:
            raise WireBug(f"{case.method} {case.formatted_path} is answered with 500")

    for found in schema.get_all_operations():
        operation = found.ok()
        # Where there is no body, there is little to get wrong: what is would be looked for in vain, and for long.
        modes = list(GenerationMode) if operation.body else [GenerationMode.POSITIVE]
        for mode in modes:
            inputs = operation.as_strategy(generation_mode=mode)
            yield Target(f"schema-{operation.method}-{operation.path}-{mode.name.lower()}", inputs, call)
