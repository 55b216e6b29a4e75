"""`swaa cluster-demo`: two replicas; the one that is answering is killed, and the answer goes on."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import grpc
from rich.console import Console

from services.cli.ask import make_prompt
from services.cli.demo import DemoFailed, read_document
from services.client import Headers, LongContextClient
from services.cluster import APPLICATION, Cluster, running_cluster
from services.config import ServeConfig, load_config
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.pb.swaa.v1 import replica_pb2, replica_pb2_grpc

NUM_REPLICAS = 2
MAX_TOKENS = 96
KILL_AFTER_TOKENS = 16
TIMEOUT_S = 120.0
PARAGRAPHS = 12
"""Of the document: enough for prefill to be seen, little enough to be asked three times on a laptop."""


def run_cluster_demo(config: ServeConfig) -> None:
    """Show it. Raises DemoFailed if the answer did not go on to its end, or was not saved."""
    console = Console(highlight=False)
    console.print(f"starting {NUM_REPLICAS} replicas and a gateway (the first start measures this machine) ...")
    with tempfile.TemporaryDirectory(prefix="swaa-demo-", ignore_cleanup_errors=True) as folder:
        own = load_config(
            **{
                **config.model_dump(exclude_unset=True),
                "listen": "127.0.0.1:0",
                "http_listen": "",
                "state_dir": Path(folder),
            }
        )
        with running_cluster(own, NUM_REPLICAS, 1) as cluster:
            asyncio.run(show_failover(cluster, console))
    console.print("everything has stopped.")


async def show_failover(cluster: Cluster, console: Console) -> None:
    """Open a session, ask twice, and kill the session's replica in the middle of the second answer."""
    document, questions = read_document()
    excerpt = "\n\n".join(document.split("\n\n")[:PARAGRAPHS])
    async with LongContextClient(cluster.gateways[0].address) as client:
        console.print("first turn: the document")
        opening = make_prompt(excerpt, questions[0].text, False)
        session, _, _ = await ask(client, opening, "new", None, console)
        fork = (await client.stub.ForkSession(pb.ForkSessionRequest(session_id=session))).session_id
        console.print("\nsecond turn, undisturbed, in a copy of the session:")
        follow_up = make_prompt("Tell me more about it, in detail.", "", False)
        _, undisturbed, _ = await ask(client, follow_up, fork, None, console)
        replica = await replica_of(cluster, session)
        console.print(f"\nsecond turn, in the session itself; replica {replica}, which has it, will be killed:")
        _, disturbed, pause_s = await ask(client, follow_up, session, int(replica.rpartition("#")[2]), console)
    console.print(f"\n\nthe answer is whole; its longest pause, from one replica to the other, was {pause_s:.1f} s")
    same = sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(disturbed, undisturbed, strict=False))
    )
    console.print(f"of its {len(disturbed)} characters, the first {same} are those of the undisturbed one; where two")
    console.print("tokens are as likely, another batch shape may round to the other")


async def ask(
    client: LongContextClient, prompt: pb.Prompt, session: str, kill_pid: int | None, console: Console
) -> tuple[str, str, float]:
    """Session, answer, and the longest pause between tokens. Kills a process in the middle, if told so."""
    text, finish, num_tokens = [], pb.Finish(), 0
    last_s, pause_s = time.monotonic(), 0.0
    sampling = pb.Sampling(max_tokens=MAX_TOKENS, ignore_eos=True)
    async for event in client.generate(prompt, sampling, Headers(session=session), TIMEOUT_S):
        kind = event.WhichOneof("event")
        if kind == "finish":
            finish = event.finish
        if kind != "token":
            continue
        now_s = time.monotonic()
        pause_s, last_s = max(pause_s, now_s - last_s) if num_tokens else 0.0, now_s
        num_tokens += 1
        text.append(event.token.text)
        sys.stdout.write(event.token.text)
        sys.stdout.flush()
        if num_tokens == KILL_AFTER_TOKENS and kill_pid is not None:
            os.kill(kill_pid, signal.SIGKILL)
            console.print(f"[bold red] <kill -9 {kill_pid}> [/]", end="")
    if num_tokens != MAX_TOKENS:
        raise DemoFailed(f"{num_tokens} tokens came instead of {MAX_TOKENS}")
    if not finish.session.saved:
        raise DemoFailed(f"the turn was not saved: {finish.session.error}")
    return finish.session.session_id, "".join([*text, finish.text]), pause_s


async def replica_of(cluster: Cluster, session_id: str) -> str:
    """Name and process id of the replica that the session's turns go to."""
    async with grpc.aio.insecure_channel(cluster.replicas) as channel:
        stub = replica_pb2_grpc.ReplicaDirectoryStub(channel)  # type: ignore[no-untyped-call]
        metadata = (("application", APPLICATION), ("session_id", session_id))
        lease = stub.Lease(replica_pb2.LeaseRequest(session_id=session_id), metadata=metadata, timeout=TIMEOUT_S)
        grant = await lease.read()
        lease.cancel()
        return str(grant.replica_id)
