"""What clients do to a server over HTTP: they go away, send too much, and send nonsense."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest

from services.gateway.limits import MAX_BODY_BYTES

from .harness import Service, open_turn, read_until, refused

pytestmark = [pytest.mark.model, pytest.mark.redis]

BIG = 1900
"""Two requests of so many tokens do not fit into the memory of `tiny`."""

FULL = {"x-swaa-recipe": "full"}
LONG = {"model": "smollm2", "prompt": "The ship", "max_tokens": BIG, "ignore_eos": True}


@contextlib.contextmanager
def connected(tiny: Service) -> Iterator[socket.socket]:
    host, _, port = tiny.http_address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=120) as connection:
        yield connection


def post(body: bytes, headers: str = "content-type: application/json\r\n", path: str = "/v1/completions") -> bytes:
    length = "" if "length" in headers else f"content-length: {len(body)}\r\n"
    return f"POST {path} HTTP/1.1\r\nhost: swaa\r\n{headers}{length}\r\n".encode() + body


def read_to(connection: socket.socket, what: bytes) -> bytes:
    data = b""
    while what not in data:
        piece = connection.recv(65536)
        assert piece, data[-500:]
        data += piece
    return data


def big_turn(tiny: Service, timeout_s: float) -> Any:
    return open_turn(tiny, "The ship", FULL, timeout_s, max_tokens=BIG, ignore_eos=True)


def assert_memory_is_full(tiny: Service) -> None:
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
        read_until(big_turn(tiny, 2.0), "token")


def assert_memory_is_free(tiny: Service) -> None:
    call = big_turn(tiny, 60.0)
    read_until(call, "token")
    call.cancel()


def ask_for_long(connection: socket.socket, stream: bool) -> None:
    headers = "content-type: application/json\r\nx-swaa-recipe: full\r\n"
    connection.sendall(post(json.dumps({**LONG, "stream": stream}).encode(), headers))


def test_a_client_that_goes_away_in_mid_stream_gives_the_memory_back(tiny: Service) -> None:
    with connected(tiny) as connection:
        ask_for_long(connection, stream=True)
        assert b"200 OK" in read_to(connection, b'"text":')
    assert_memory_is_free(tiny)


def test_a_client_that_goes_away_without_a_stream_gives_the_memory_back(tiny: Service) -> None:
    with connected(tiny) as connection:
        ask_for_long(connection, stream=False)
    assert_memory_is_free(tiny)


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        (post(b"{", headers="content-type: text/plain\r\n"), 415, "must be application/json"),
        (post(b"{}", headers=""), 415, "must be application/json"),
        (post(b"{"), 400, "must be JSON"),
        (post(b"[]"), 400, "must be a JSON object"),
        (post(b'{"model": "\xff"}'), 400, "byte 11 is not UTF-8"),
        (post(b'{"model": "a", "model": "b"}'), 400, "given twice"),
        (post(b'{"temperature": NaN}'), 400, "NaN is not allowed"),
        (post(b'{"prompt": "\\ud800"}'), 400, "surrogate"),
        (post(b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), 400, "nested deeper than 64"),
        (post(b"{}"), 400, "is required"),
        (post(b"{}", path="/v1/chat/completions"), 400, "is required"),
        (post(b"", f"content-type: application/json\r\ncontent-length: {MAX_BODY_BYTES + 1}\r\n"), 413, "at most"),
        (post(b"{}", path="/v1/embeddings"), 404, "Not Found"),
        (b"GET /v1/completions HTTP/1.1\r\nhost: swaa\r\n\r\n", 405, "Method Not Allowed"),
        (b"GET / HTTP/1.1\r\nhost: swaa\r\nx: " + b"y" * 1_000_000 + b"\r\n\r\n", 400, ""),
        (b"what?\r\n\r\n", 400, ""),
    ],
)
def test_nonsense_is_refused(tiny: Service, data: bytes, status: int, said: str) -> None:
    with connected(tiny) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may answer before all of it is sent
            connection.sendall(data)
        answer = read_to(connection, b"\r\n\r\n")
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:300]
        if said:
            while b'"code"' not in answer:
                answer += connection.recv(65536)
            assert said.encode() in answer
            assert b"Traceback" not in answer


def test_a_page_of_another_origin_gets_nothing(tiny: Service) -> None:
    preflight = {"origin": "http://elsewhere", "access-control-request-method": "POST"}
    with httpx.Client(base_url=f"http://{tiny.http_address}") as http:
        answers = [http.options("/v1/completions", headers=preflight), http.get("/v1/models", headers=preflight)]
    assert not [name for answer in answers for name in answer.headers if name.startswith("access-control")]


def test_headers_given_twice_are_refused(tiny: Service) -> None:
    with httpx.Client(base_url=f"http://{tiny.http_address}") as http:
        twice = [("x-swaa-sla", "quality"), ("x-swaa-sla", "quality")]
        answer = http.post("/v1/completions", json={"model": "smollm2", "prompt": "x"}, headers=twice)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "x-swaa-sla"


def test_two_big_ones_do_not_fit(tiny: Service) -> None:
    """What the tests above rely on."""
    call = big_turn(tiny, 60.0)
    read_until(call, "token")
    assert_memory_is_full(tiny)
    call.cancel()
    assert_memory_is_free(tiny)
