"""A whole turn through a gateway, and a replica that is killed in the middle of one."""

from __future__ import annotations

import os
import signal
from typing import Any

import grpc
import pytest

from services.cluster import Cluster
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.pb.swaa.v1 import long_context_pb2_grpc as pb_grpc

from .harness import held, is_running, pid_of

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.model]

MAX_TOKENS = 400
TIMEOUT_S = 240


def open_turn(cluster: Cluster, session: str, max_tokens: int) -> Any:
    channel = grpc.insecure_channel(cluster.gateways[0].address)
    request = pb.GenerateRequest(
        prompt=pb.Prompt(text="All about the harbour. " * 20),
        sampling=pb.Sampling(max_tokens=max_tokens, ignore_eos=True),
    )
    stub = pb_grpc.LongContextStub(channel)  # type: ignore[no-untyped-call]
    return stub.Generate(request, metadata=(("x-swaa-session", session),), timeout=TIMEOUT_S)


def test_an_answer_completes_though_its_replica_is_killed(cluster: Cluster, channel: grpc.Channel) -> None:
    *_, last = open_turn(cluster, "new", 8)
    session = last.finish.session
    assert session.saved

    token_ids, finish, killed = [], pb.Finish(), 0
    for event in open_turn(cluster, session.session_id, MAX_TOKENS):
        if event.WhichOneof("event") == "finish":
            finish = event.finish
        if event.WhichOneof("event") == "token":
            token_ids.append(event.token.token_id)
        if len(token_ids) == 8 and not killed:
            with held(channel, session.session_id) as grant:  # sticky, so it is the one that runs the turn
                killed = pid_of(grant)
            os.kill(killed, signal.SIGKILL)
    assert len(token_ids) == MAX_TOKENS
    assert not is_running(killed)
    assert finish.session.saved
    assert finish.session.version == session.version + 1
