"""Replicas killed under load, on a cluster as `swaa serve --ray` starts it: nobody notices."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from benchmarks.workload import make_tiny_model
from services.client import Headers, LongContextClient
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.sessions.embedded_redis import EmbeddedRedis

from .harness import is_running, processes_with, until

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.model, pytest.mark.timeout(600)]

NUM_KILLS = 20
NUM_CLIENTS = 8
NUM_REPLICAS = 3
MAX_TOKENS = 120
START_TIMEOUT_S = 180
REPLACED_TIMEOUT_S = 60


@dataclass(frozen=True)
class Running:
    """A cluster of its own process."""

    gateways: tuple[str, ...]
    folder: Path
    process: subprocess.Popen[bytes]
    redis: EmbeddedRedis

    def replicas(self) -> list[int]:
        """Processes of replicas that are up."""
        return self.named("ray::ServeReplica:")

    def named(self, part: str) -> list[int]:
        """Processes of the cluster that have this in their command line."""
        pids = []
        for pid in processes_with(str(self.folder)):
            with contextlib.suppress(OSError):
                if os.fsencode(part) in Path(f"/proc/{pid}/cmdline").read_bytes():
                    pids.append(pid)
        return pids


@pytest.fixture(scope="module")
def running(default_model_folder: Path) -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="swaa-fo-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        ready, log_path = folder / "ready", folder / "log"
        redis = EmbeddedRedis(folder / "redis")
        redis.start()
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SWAA_")},
            "SWAA_MODEL": str(make_tiny_model(folder, default_model_folder)),
            "SWAA_DTYPE": "float32",
            "SWAA_KV_MEMORY_MIB": "64",
            "SWAA_CHECKPOINT_TOKENS": "128",
            "SWAA_REDIS_URL": redis.url,
            "SWAA_CACHE_DIR": str(folder / "cache"),
            "SWAA_STATE_DIR": str(folder / "state"),
            "SWAA_LISTEN": "127.0.0.1:0",
            "SWAA_HTTP_LISTEN": "",
            "OMP_NUM_THREADS": "1",
        }
        options = ("--num-replicas", str(NUM_REPLICAS), "--num-gateways", "2", "--ready-file", str(ready))
        command = (sys.executable, "-m", "services.cli", "serve", "--ray", *options)
        with log_path.open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            deadline_s = time.monotonic() + START_TIMEOUT_S
            while not ready.exists():
                assert process.poll() is None, log_path.read_text(errors="replace")[-3000:]
                assert time.monotonic() < deadline_s, log_path.read_text(errors="replace")[-3000:]
                time.sleep(0.2)
            gateways = tuple(ready.read_text(encoding="utf-8").split())
            assert len(gateways) == 2
            yield Running(gateways, folder, process, redis)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            redis.stop()
        until("all processes of the cluster are gone", lambda: not processes_with(str(folder)), 20)


def prompt_of(index: int) -> pb.Prompt:
    return pb.Prompt(token_ids=random.Random(index).choices(range(1000, 40000), k=40 + 60 * index))


SAMPLING = pb.Sampling(max_tokens=MAX_TOKENS, ignore_eos=True)


async def answer(client: LongContextClient, prompt: pb.Prompt, session: str = "new") -> tuple[list[int], pb.Finish]:
    """A whole turn, whose events must come in the order that is promised."""
    kinds: list[str] = []
    tokens: list[int] = []
    progress: list[int] = []
    async for event in client.generate(prompt, SAMPLING, Headers(recipe="sliding-tail", session=session)):
        kind = str(event.WhichOneof("event"))
        kinds.append(kind)
        if kind == "token":
            tokens.append(event.token.token_id)
        elif kind == "prefill":
            progress.append(event.prefill.done_tokens)
    assert re.fullmatch(r"accepted( prefill)*( token)+ finish", " ".join(kinds)), Counter(kinds)
    assert progress == sorted(set(progress)), "progress went back"
    return tokens, event.finish


def test_kills_under_load_are_not_seen_by_any_client(running: Running) -> None:
    """NUM_KILLS replicas, at random moments, under NUM_CLIENTS clients who ask without a pause: 0 failed, 0 wrong."""

    async def check() -> tuple[int, Counter[str]]:
        async with LongContextClient(running.gateways[0]) as one, LongContextClient(running.gateways[1]) as other:
            return await under_load((one, other))

    async def under_load(clients: Sequence[LongContextClient]) -> tuple[int, Counter[str]]:
        expected = [(await answer(clients[0], prompt_of(index)))[0] for index in range(NUM_CLIENTS)]
        assert len({tuple(tokens) for tokens in expected}) == NUM_CLIENTS
        stopping = asyncio.Event()
        histories: Counter[str] = Counter()

        async def ask(index: int) -> int:
            turns = 0
            while not stopping.is_set():
                tokens, finish = await answer(clients[(index + turns) % 2], prompt_of(index))
                assert tokens == expected[index], f"turn {turns} of client {index}"
                assert finish.session.saved, finish.session.error
                histories[finish.session.history.split(":")[0]] += 1
                turns += 1
            return turns

        asking = [asyncio.create_task(ask(index)) for index in range(NUM_CLIENTS)]
        try:
            for _ in range(NUM_KILLS):
                await kill_one(running)
        finally:
            stopping.set()
            turns = await asyncio.gather(*asking)
        return sum(turns), histories

    turns, histories = asyncio.run(check())
    assert turns >= NUM_KILLS
    assert histories, "somebody was answered"


async def kill_one(running: Running) -> None:
    """Kill -9 a replica at a random moment, when all are up; wait until it is dead."""
    deadline_s = time.monotonic() + REPLACED_TIMEOUT_S
    while len(pids := running.replicas()) < NUM_REPLICAS - 1:
        assert time.monotonic() < deadline_s, "replicas are not replaced"
        await asyncio.sleep(0.1)
    await asyncio.sleep(random.uniform(0.0, 1.5))
    victim = random.choice(pids)
    os.kill(victim, signal.SIGKILL)
    while is_running(victim):  # noqa: ASYNC110 - the kernel tells nobody
        await asyncio.sleep(0.01)


def test_a_session_goes_on_at_any_gateway(running: Running) -> None:
    """Two gateways share the replicas and their sessions: turns alternate, and are those of one that stays."""

    async def converse(clients: Sequence[LongContextClient]) -> list[list[int]]:
        answers, session = [], "new"
        for turn in range(4):
            tokens, finish = await answer(clients[turn % len(clients)], prompt_of(turn), session)
            answers.append(tokens)
            session = finish.session.session_id
            assert finish.session.version == turn + 1
            assert (finish.session.history == "none") == (turn == 0), finish.session.history
        return answers

    async def check() -> None:
        async with LongContextClient(running.gateways[0]) as one, LongContextClient(running.gateways[1]) as other:
            assert await converse([one, other]) == await converse([one])

    asyncio.run(check())


def test_serves_controller_may_be_killed(running: Running) -> None:
    """Turns that run go on, and so do new ones: leases do not pass through the controller."""

    async def check() -> None:
        async with LongContextClient(running.gateways[0]) as client:
            expected, finish = await answer(client, prompt_of(3))
            [controller] = running.named("ray::ServeController")
            os.kill(controller, signal.SIGKILL)
            for _ in range(5):
                tokens, again = await answer(client, prompt_of(3))
                assert tokens == expected
                assert again.session.saved
            tokens, more = await answer(client, prompt_of(4), finish.session.session_id)
            assert more.session.version == 2

    asyncio.run(check())
    until("there is a controller again", lambda: running.named("ray::ServeController"), REPLACED_TIMEOUT_S)


def test_a_redis_that_restarts_loses_no_turn_it_acknowledged(running: Running) -> None:
    """Killed and started again in mid-answer: the answer is whole; the session is at that turn or the one before."""

    async def check() -> None:
        async with LongContextClient(running.gateways[1]) as client:
            _, first = await answer(client, prompt_of(5))
            session = first.session.session_id
            asking = asyncio.create_task(answer(client, prompt_of(6), session))
            await asyncio.sleep(0.2)
            running.redis.kill()
            await asyncio.sleep(0.5)
            running.redis.start()
            tokens, second = await asking
            assert len(tokens) == MAX_TOKENS
            async with asyncio.timeout(45):
                third = await when_free(client, prompt_of(7), session)
            assert third.session.version == (3 if second.session.saved else 2)
            assert third.session.saved

    asyncio.run(check())


async def when_free(client: LongContextClient, prompt: pb.Prompt, session: str) -> pb.Finish:
    """A turn, as soon as nobody else holds the session, and the store is there."""
    while True:
        try:
            return (await answer(client, prompt, session))[1]
        except grpc.aio.AioRpcError as exc:
            if exc.code() not in (grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE):
                raise
        await asyncio.sleep(0.1)


def test_a_gateway_that_is_killed_takes_only_its_own_streams(running: Running) -> None:
    """Its clients get UNAVAILABLE; the sessions it was serving go on at the other one."""
    victim, other = running.gateways

    async def check() -> None:
        async with LongContextClient(other) as client:
            session = (await answer(client, prompt_of(1)))[1].session.session_id
            async with LongContextClient(victim) as doomed:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await killed_in_mid_answer(doomed, session)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            async with asyncio.timeout(30):
                finish = await when_free(client, prompt_of(2), session)
            assert finish.session.version == 2

    async def killed_in_mid_answer(doomed: LongContextClient, session: str) -> None:
        headers = Headers(recipe="sliding-tail", session=session)
        async for event in doomed.generate(prompt_of(2), SAMPLING, headers):
            if event.WhichOneof("event") == "token":
                os.kill(gateway_process(running, victim), signal.SIGKILL)

    asyncio.run(check())


def gateway_process(running: Running, address: str) -> int:
    """The `swaa gateway` process that listens there, as its ready file says."""
    for pid in processes_with(str(running.folder)):
        words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")
        if "gateway" in words and "--ready-file" in words and "/bin/sh" not in words:
            ready = Path(words[words.index("--ready-file") + 1])
            if ready.read_text(encoding="utf-8") == address:
                return pid
    raise AssertionError(f"no gateway process for {address}")
