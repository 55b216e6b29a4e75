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

from services.cli.asking import api_key
from services.cli.demo import DemoFailed, read_document
from services.client import AsyncAnswerStream, AsyncClient
from services.cluster import APPLICATION, Cluster, running_cluster
from services.config import ServeConfig, load_config
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
    async with AsyncClient(cluster.gateways[0].address, timeout_s=TIMEOUT_S, api_key=api_key()) as client:
        chat = client.session(max_tokens=MAX_TOKENS, ignore_eos=True)
        console.print("first turn: the document")
        await ask(chat.stream(excerpt, question=questions[0].text), None, console)
        fork = await chat.fork()
        follow_up = "Tell me more about it, in detail."
        console.print("\nsecond turn, undisturbed, in a copy of the session:")
        undisturbed, _ = await ask(fork.stream(follow_up), None, console)
        replica = await replica_of(cluster, str(chat.id))
        console.print(f"\nsecond turn, in the session itself; replica {replica}, which has it, will be killed:")
        disturbed, pause_s = await ask(chat.stream(follow_up), int(replica.rpartition("#")[2]), console)
    console.print(f"\n\nthe answer is whole; its longest pause, from one replica to the other, was {pause_s:.1f} s")
    same = sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(disturbed, undisturbed, strict=False))
    )
    console.print(f"of its {len(disturbed)} characters, the first {same} are those of the undisturbed one; where two")
    console.print("tokens are as likely, another batch shape may round to the other")


async def ask(stream: AsyncAnswerStream, kill_pid: int | None, console: Console) -> tuple[str, float]:
    """The answer, and the longest pause between tokens. Kills a process in the middle, if told so."""
    num_tokens = 0
    last_s, pause_s = time.monotonic(), 0.0
    async for token in stream:
        sys.stdout.write(token.text)
        sys.stdout.flush()
        if token.token_id is None:
            continue
        now_s = time.monotonic()
        pause_s, last_s = max(pause_s, now_s - last_s) if num_tokens else 0.0, now_s
        num_tokens += 1
        if num_tokens == KILL_AFTER_TOKENS and kill_pid is not None:
            os.kill(kill_pid, signal.SIGKILL)
            console.print(f"[bold red] <kill -9 {kill_pid}> [/]", end="")
    answer = await stream.answer()
    if num_tokens != MAX_TOKENS:
        raise DemoFailed(f"{num_tokens} tokens came instead of {MAX_TOKENS}")
    if answer.session is None or not answer.session.saved:
        raise DemoFailed(f"the turn was not saved: {answer.session.error if answer.session else 'it has no session'}")
    return answer.text, pause_s


async def replica_of(cluster: Cluster, session_id: str) -> str:
    """Name and process id of the replica that the session's turns go to."""
    async with grpc.aio.insecure_channel(cluster.replicas) as channel:
        stub = replica_pb2_grpc.ReplicaDirectoryStub(channel)  # type: ignore[no-untyped-call]
        metadata = (("application", APPLICATION), ("session_id", session_id))
        lease = stub.Lease(replica_pb2.LeaseRequest(session_id=session_id), metadata=metadata, timeout=TIMEOUT_S)
        grant = await lease.read()
        lease.cancel()
        return str(grant.replica_id)
