"""Both front doors of a tiny service under TLS: who gets in, with which clients, and what a new certificate changes."""

from __future__ import annotations

import io
import platform
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest
import trustme

from services.certificate_source import CertificateSource
from services.cli.main import main
from services.client import NO_RETRY, AsyncClient, Client, Unavailable, tls
from services.config import load_config
from services.gateway.auth.authenticator import Everybody
from services.gateway.front_doors import FrontDoors
from tests.services.certificates import CertificateFolder, issued_in, look, replace, serial_of, trusting
from tests.services.sessions.builders import asynchronous
from tests.services.tiny_service import in_thread, tiny_service

GRPCURL = Path(sys.executable).parent / "grpcurl"
LONG = 200


@dataclass(frozen=True, slots=True)
class Doors:
    """What is open, and with which certificate."""

    open: FrontDoors
    source: CertificateSource
    certificates: CertificateFolder

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.open.port}"

    @property
    def http(self) -> str:
        return f"https://127.0.0.1:{self.open.http_port}"


@asynccontextmanager
async def opened(folder: Path, asks_clients: bool = False) -> AsyncIterator[Doors]:
    certificates = issued_in(folder)
    source = CertificateSource(certificates.files(asks_clients))
    config = load_config(
        model="tiny", listen="127.0.0.1:0", http_listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", cache_dir=folder
    )
    async with tiny_service() as service:
        parts = (service.facts, service.answers, service.store, service.sessions, Everybody())
        doors = FrontDoors(config, *parts, certificates=source)
        await doors.start()
        try:
            yield Doors(doors, source, certificates)
        finally:
            await doors.stop(0)


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    """That ask for no certificate of clients."""
    with in_thread(lambda: opened(tmp_path_factory.mktemp("doors"))) as doors:
        yield doors


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    """That ask for one."""
    with in_thread(lambda: opened(tmp_path_factory.mktemp("locked"), asks_clients=True)) as doors:
        yield doors


@pytest.fixture(scope="module")
def me(locked: Doors, tmp_path_factory: pytest.TempPathFactory) -> CertificateFolder:
    """A client of the authority that `locked` asks for."""
    made = CertificateFolder(tmp_path_factory.mktemp("me"), locked.certificates.authority)
    made.issue("me@example.org")
    return made


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> CertificateFolder:
    """Of an authority of its own."""
    return issued_in(tmp_path_factory.mktemp("stranger"), "me@example.org")


def generate(doors: Doors, credentials: grpc.ChannelCredentials | None) -> str:
    with Client(doors.grpc, credentials=credentials, timeout_s=120, retry=NO_RETRY) as client:
        return client.generate("a log", recipe="full", max_tokens=4, raw=True).text


def http_status(doors: Doors, context: ssl.SSLContext) -> int:
    with httpx.Client(verify=context) as client:
        return client.get(f"{doors.http}/v1/models").status_code


def test_who_trusts_the_authority_is_served(doors: Doors) -> None:
    ca = doors.certificates.ca
    assert len(generate(doors, tls(ca))) == 4
    assert http_status(doors, trusting(ca)) == 200


def test_who_does_not_trust_it_or_speaks_plainly_is_not(doors: Doors, stranger: CertificateFolder) -> None:
    for credentials in (tls(stranger.ca), None):
        with pytest.raises(Unavailable):
            generate(doors, credentials)
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        http_status(doors, trusting(stranger.ca))
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{doors.http.replace('https', 'http')}/v1/models")


def test_a_client_without_a_certificate_of_the_right_authority_is_refused(
    locked: Doors, me: CertificateFolder, stranger: CertificateFolder
) -> None:
    ca = locked.certificates.ca
    assert len(generate(locked, tls(ca, me.cert, me.key))) == 4
    assert http_status(locked, trusting(ca, me)) == 200
    for credentials in (tls(ca), tls(ca, stranger.cert, stranger.key)):
        with pytest.raises(Unavailable):
            generate(locked, credentials)
    for context in (trusting(ca), trusting(ca, stranger)):
        with pytest.raises((httpx.HTTPError, ssl.SSLError)):
            http_status(locked, context)


def test_probes_and_operators_need_no_certificate(locked: Doors) -> None:
    operators = f"http://127.0.0.1:{locked.open.operators_port}"
    assert httpx.get(f"{operators}/healthz").json() == {"status": "alive"}
    assert httpx.get(f"{operators}/readyz").json() == {"status": "serving"}
    for path in ("/v1/models", "/api/sessions", "/"):
        assert httpx.get(operators + path).status_code == 404


def test_openai_over_https(locked: Doors, me: CertificateFolder) -> None:
    http_client: Any = openai.DefaultHttpxClient(verify=trusting(locked.certificates.ca, me))
    with openai.OpenAI(base_url=f"{locked.http}/v1", api_key="none", http_client=http_client, max_retries=0) as client:
        answer = client.completions.create(model="tiny", prompt="a log", max_tokens=4)
    assert len(answer.choices[0].text) == 4


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the package's grpcurl is for x86-64")
def test_grpcurl(locked: Doors, me: CertificateFolder) -> None:
    def listed(*options: object) -> subprocess.CompletedProcess[str]:
        command = [str(GRPCURL), "-max-time", "20", *map(str, options), locked.grpc, "list"]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    trust = ("-cacert", locked.certificates.ca)
    done = listed(*trust, "-cert", me.cert, "-key", me.key)
    assert "swaa.v1.LongContext" in done.stdout.split(), done.stderr
    assert listed(*trust).returncode != 0
    assert listed("-plaintext").returncode != 0


def test_every_command_of_ours_takes_the_options_or_the_environment(
    locked: Doors, me: CertificateFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def swaa(*arguments: object, stdin: str = "", code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["swaa", *map(str, arguments), "-s", locked.grpc])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with pytest.raises(SystemExit) as caught:
            main()
        told = capsys.readouterr()
        assert (caught.value.code or 0) == code, told.err
        return told.out + told.err

    ca = locked.certificates.ca
    options = ("--ca-file", ca, "--cert-file", me.cert, "--key-file", me.key)
    assert "tiny" in swaa(*options, "info")
    assert "UNAVAILABLE" in swaa("info", code=1)
    assert "UNAVAILABLE" in swaa("--ca-file", ca, "info", code=1)
    assert "INVALID_ARGUMENT: key_file is None" in swaa("--cert-file", me.cert, "info", code=1)
    for name, path in (("CA", ca), ("CERT", me.cert), ("KEY", me.key)):
        monkeypatch.setenv(f"SWAA_CLIENT_{name}_FILE", str(path))
    assert "recipe full" in swaa("generate", "--recipe", "full", "--max-tokens", "2", stdin="a log")
    assert "session" in swaa("sessions", "list")
    assert "prompt tokens" in swaa("plan", "--prompt-tokens", "30")
    with pytest.raises(grpc.aio.AioRpcError, match="must be under 1024 tokens"):  # it gets there, and asks for too much
        swaa("load", "--rate", "20", "--duration-s", "0.2")
    assert load_config().tls_cert_file is None  # what clients are told is no setting of a service


@asynchronous
async def test_a_new_certificate_is_for_new_connections_and_no_stream_ends(tmp_path: Path) -> None:
    async with opened(tmp_path) as doors:
        made = doors.certificates
        first, trust = serial_of(made.cert), tls(made.ca)
        body = {"model": "tiny", "prompt": "a log", "max_tokens": LONG, "stream": True, "ignore_eos": True}
        async with (
            AsyncClient(doors.grpc, credentials=trust, timeout_s=120) as client,
            client.stream("a log", recipe="full", max_tokens=LONG, raw=True) as stream,
            httpx.AsyncClient(verify=trusting(made.ca), timeout=120) as http,
            http.stream("POST", f"{doors.http}/v1/completions", json=body) as events,
        ):
            lines = events.aiter_lines()
            await anext(stream)
            await anext(lines)
            assert await seen(doors) == (first, first)
            made.issue(key_type=trustme.KeyType.RSA)
            await doors.source.refresh()
            second = serial_of(made.cert)
            assert second != first
            assert await seen(doors) == (second, second)
            replace(made.cert, b"half a")
            await doors.source.refresh()
            assert doors.source.num_failures == 1
            assert await seen(doors) == (second, second)
            assert (await stream.answer()).usage.generated_tokens == LONG
            assert [line async for line in lines if line][-1] == "data: [DONE]"


async def seen(doors: Doors) -> tuple[int, int]:
    """Serial numbers that a new connection sees, by gRPC and by HTTP."""
    assert doors.open.http_port is not None
    by_grpc = await look(doors.open.port, trusting(doors.certificates.ca, alpn="h2"))
    by_http = await look(doors.open.http_port, trusting(doors.certificates.ca))
    assert (by_grpc.protocol, by_http.protocol) == ("h2", "http/1.1")
    assert {by_grpc.version, by_http.version} == {"TLSv1.3"}
    return by_grpc.serial, by_http.serial


@asynchronous
async def test_who_is_let_in_changes_with_the_authorities(tmp_path: Path) -> None:
    async with opened(tmp_path / "doors", asks_clients=True) as doors:
        old = CertificateFolder(tmp_path, doors.certificates.authority)
        old.issue("me@example.org")
        trust = tmp_path / "service.pem"
        trust.write_bytes(doors.certificates.ca.read_bytes())
        assert doors.open.http_port is not None
        await look(doors.open.http_port, trusting(trust, old))
        replace(doors.certificates.ca, trustme.CA().cert_pem.bytes())
        await doors.source.refresh()
        for address in (doors.http, f"https://{doors.grpc}"):
            async with httpx.AsyncClient(verify=trusting(trust, old), http2=False) as client:
                with pytest.raises((httpx.HTTPError, ssl.SSLError)):
                    await client.get(f"{address}/v1/models")
