"""A client that knows nothing of this project: grpcurl, by reflection alone."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from .harness import Service

GRPCURL = Path(sys.executable).parent / "grpcurl"

pytestmark = [
    pytest.mark.model,
    pytest.mark.redis,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the package's grpcurl is for x86-64"),
]

SERVICE = "swaa.v1.LongContext"


def grpcurl(tiny: Service, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = (str(GRPCURL), "-plaintext", *options, tiny.address, *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def generate(tiny: Service, *headers: str) -> subprocess.CompletedProcess[str]:
    data = json.dumps({"prompt": {"text": "The ship"}, "sampling": {"max_tokens": 4, "ignore_eos": True}})
    given = [part for header in headers for part in ("-H", header)]
    return grpcurl(tiny, f"{SERVICE}/Generate", options=("-d", data, *given))


def events(text: str) -> list[dict[str, object]]:
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text.rstrip()):
        event, at = decoder.raw_decode(text, at)
        found.append(event)
        at += len(text[at:]) - len(text[at:].lstrip())
    return found


def test_list_and_describe(tiny: Service) -> None:
    listed = grpcurl(tiny, "list").stdout.split()
    assert {SERVICE, "grpc.health.v1.Health"} <= set(listed)
    told = grpcurl(tiny, "describe", SERVICE).stdout
    assert "rpc Generate ( .swaa.v1.GenerateRequest ) returns ( stream .swaa.v1.GenerateResponse );" in told
    assert "optional uint32 max_tokens" in grpcurl(tiny, "describe", "swaa.v1.Sampling").stdout
    assert "SERVING" in grpcurl(tiny, "grpc.health.v1.Health/Check").stdout


def test_a_stream_of_an_answer(tiny: Service) -> None:
    done = generate(tiny, "x-swaa-recipe: sliding", "x-swaa-session: new")
    assert done.returncode == 0, done.stderr
    kinds = [next(iter(event)) for event in events(done.stdout)]
    assert kinds[0] == "accepted"
    assert kinds[-1] == "finish"
    assert kinds.count("token") == 4
    assert events(done.stdout)[0]["accepted"]["recipe"]["name"] == "sliding"  # type: ignore[index]


def test_a_wrong_header_is_told(tiny: Service) -> None:
    done = generate(tiny, "x-swaa-sla: gold")
    assert done.returncode != 0
    assert "Code: InvalidArgument" in done.stderr
    assert "x-swaa-sla is 'gold': unknown SLA class" in done.stderr


def test_a_strict_refusal_tells_what_would_be_missed(tiny: Service) -> None:
    done = generate(tiny, "x-swaa-strict: true", "x-slo-ttft-ms: 0.001")
    assert done.returncode != 0
    assert "Code: ResourceExhausted" in done.stderr
    assert "strict" in done.stderr
