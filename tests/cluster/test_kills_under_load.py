"""Replicas killed under load, on a cluster as `swaa serve --ray` starts it: nobody notices.

Between its gateways and replicas is mutual TLS.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import pytest

from services.certificate_source import channel_credentials
from services.client import NO_RETRY, AsyncClient, Busy, SessionResult, TurnOptions, Unavailable
from services.config import ServeConfig
from services.replica.wire import REPLICA_NAME
from services.sessions.embedded_redis import EmbeddedRedis
from services.tls import read_certificate
from tests.services.certificates import CertificateFolder, issued_in, replace

from .harness import held, is_ready, is_running, processes_with, until
from .running import REPLACED_TIMEOUT_S, Running, running_process

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.model]

NUM_KILLS = 6
NUM_CLIENTS = 8
NUM_REPLICAS = 3
MAX_TOKENS = 120
CONNECT_S = 3.0


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> CertificateFolder:
    """Of replicas, and of gateways as well."""
    return issued_in(tmp_path_factory.mktemp("tls"), REPLICA_NAME)


@pytest.fixture(scope="module")
def running(config: ServeConfig, certificates: CertificateFolder) -> Iterator[Running]:
    """With the model of the folder's other cluster, and what has been measured of it."""
    files = {"cert_file": certificates.cert, "key_file": certificates.key, "ca_file": certificates.ca}
    settings = {f"replica_tls_{name}": str(path) for name, path in files.items()}
    settings["cache_dir"] = str(config.cache_dir)
    with tempfile.TemporaryDirectory(prefix="swaa-fo-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with (
            EmbeddedRedis(folder / "redis") as redis,
            running_process(folder, Path(config.model), redis, NUM_REPLICAS, 2, settings) as it,
        ):
            yield it


def prompt_of(index: int) -> list[int]:
    return random.Random(index).choices(range(1000, 40000), k=40 + 60 * index)


OPTIONS: TurnOptions = {"max_tokens": MAX_TOKENS, "ignore_eos": True, "recipe": "sliding-tail"}


def connect(address: str) -> AsyncClient:
    """A client that hides nothing: what goes wrong is seen."""
    return AsyncClient(address, retry=NO_RETRY)


async def answer(client: AsyncClient, prompt: list[int], session: str = "new") -> tuple[list[int], SessionResult]:
    """A whole turn, whose events must come in the order that is promised."""
    progress: list[int] = []
    options: TurnOptions = {**OPTIONS, "on_progress": lambda step: progress.append(step.done_tokens)}
    turn = await client.generate(prompt, session=session, **options)
    assert progress == sorted(set(progress)), "progress went back"
    assert turn.session is not None
    return list(turn.token_ids), turn.session


def test_replicas_answer_gateways_with_a_certificate_and_nobody_else(
    running: Running, certificates: CertificateFolder, tmp_path: Path
) -> None:
    async def turn() -> None:
        async with connect(running.gateways[0]) as client:
            tokens, finish = await answer(client, prompt_of(0))
            assert (len(tokens), finish.saved) == (MAX_TOKENS, True)

    asyncio.run(turn())
    stranger = issued_in(tmp_path / "stranger", REPLICA_NAME)
    replace(stranger.ca, certificates.ca.read_bytes())  # it trusts replicas, and they do not trust it
    with grpc.insecure_channel(running.replicas_at) as proxy, held(proxy) as grant:
        assert is_reachable(grant.address, certificates)
        assert not is_reachable(grant.address, stranger)
        assert not is_reachable(grant.address, None)


def is_reachable(address: str, own: CertificateFolder | None) -> bool:
    """Whether somebody with this certificate, or with none, gets a connection."""
    options = [("grpc.ssl_target_name_override", REPLICA_NAME)]
    if own is None:
        channel = grpc.insecure_channel(address)
    else:
        credentials = channel_credentials(read_certificate(own.files(asks_clients=True)))
        channel = grpc.secure_channel(address, credentials, options)
    return is_ready(channel, CONNECT_S)


def test_kills_under_load_are_not_seen_by_any_client(running: Running) -> None:
    """NUM_KILLS replicas, at random moments, under NUM_CLIENTS clients who ask without a pause: 0 failed, 0 wrong."""

    async def check() -> tuple[int, Counter[str]]:
        async with connect(running.gateways[0]) as one, connect(running.gateways[1]) as other:
            return await under_load((one, other))

    async def under_load(clients: Sequence[AsyncClient]) -> tuple[int, Counter[str]]:
        expected = [(await answer(clients[0], prompt_of(index)))[0] for index in range(NUM_CLIENTS)]
        assert len({tuple(tokens) for tokens in expected}) == NUM_CLIENTS
        stopping = asyncio.Event()
        histories: Counter[str] = Counter()

        async def ask(index: int) -> int:
            turns = 0
            while not stopping.is_set():
                tokens, finish = await answer(clients[(index + turns) % 2], prompt_of(index))
                assert tokens == expected[index], f"turn {turns} of client {index}"
                assert finish.saved, finish.error
                histories[finish.history.split(":")[0]] += 1
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
    """Kill -9 a replica at a random moment, when not more than one is missing; wait until it is dead."""
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

    async def converse(clients: Sequence[AsyncClient]) -> list[list[int]]:
        answers, session = [], "new"
        for turn in range(4):
            tokens, finish = await answer(clients[turn % len(clients)], prompt_of(turn), session)
            answers.append(tokens)
            session = finish.session_id
            assert finish.version == turn + 1
            assert (finish.history == "none") == (turn == 0), finish.history
        return answers

    async def check() -> None:
        async with connect(running.gateways[0]) as one, connect(running.gateways[1]) as other:
            assert await converse([one, other]) == await converse([one])

    asyncio.run(check())


def test_serves_controller_may_be_killed(running: Running) -> None:
    """Turns that run go on, and so do new ones: leases do not pass through the controller."""

    async def check() -> None:
        async with connect(running.gateways[0]) as client:
            expected, finish = await answer(client, prompt_of(3))
            [controller] = running.named("ray::ServeController")
            os.kill(controller, signal.SIGKILL)
            for _ in range(5):
                tokens, again = await answer(client, prompt_of(3))
                assert tokens == expected
                assert again.saved
            tokens, more = await answer(client, prompt_of(4), finish.session_id)
            assert more.version == 2

    asyncio.run(check())
    until("there is a controller again", lambda: running.named("ray::ServeController"), REPLACED_TIMEOUT_S)


def test_a_redis_that_restarts_loses_no_turn_it_acknowledged(running: Running) -> None:
    """Killed and started again in mid-answer: the answer is whole; the session is at that turn or the one before."""

    async def check() -> None:
        async with connect(running.gateways[1]) as client:
            _, first = await answer(client, prompt_of(5))
            session = first.session_id
            stream = client.stream(prompt_of(6), session=session, **OPTIONS)
            await anext(stream)
            running.redis.kill()
            await asyncio.sleep(0.5)
            running.redis.start()
            second = await stream.answer()
            assert len(second.token_ids) == MAX_TOKENS
            assert second.session is not None
            async with asyncio.timeout(240):
                third = await when_free(client, prompt_of(7), session)
            assert third.version == (3 if second.session.saved else 2)
            assert third.saved

    asyncio.run(check())


async def when_free(client: AsyncClient, prompt: list[int], session: str) -> SessionResult:
    """A turn, as soon as nobody else holds the session, and the store is there."""
    while True:
        try:
            return (await answer(client, prompt, session))[1]
        except (Busy, Unavailable):
            await asyncio.sleep(0.1)


def test_a_gateway_that_is_killed_takes_only_its_own_streams(running: Running) -> None:
    """Its clients get UNAVAILABLE; the sessions it was serving go on at the other one, and at its successor."""
    victim, other = running.gateways

    async def check() -> None:
        async with connect(other) as client:
            session = (await answer(client, prompt_of(1)))[1].session_id
            async with connect(victim) as doomed:
                with pytest.raises(Unavailable):
                    await killed_in_mid_answer(doomed, session)
            async with asyncio.timeout(REPLACED_TIMEOUT_S):
                second = await when_free(client, prompt_of(2), session)
            assert second.version == 2
        async with connect(victim) as client, asyncio.timeout(REPLACED_TIMEOUT_S):
            third = await when_free(client, prompt_of(3), session)
            assert (third.version, third.history == "none") == (3, False)

    async def killed_in_mid_answer(doomed: AsyncClient, session: str) -> None:
        pid = gateway_process(running, victim)
        async for _ in doomed.stream(prompt_of(2), session=session, **OPTIONS):
            if is_running(pid):  # events that are on their way still come
                os.kill(pid, signal.SIGKILL)

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


def test_nothing_of_a_killed_cluster_stays_behind(running: Running) -> None:
    """Comes last. Its Redis is not its own, and stays; one that is ends with it (test_embedded_redis)."""
    redis = set(running.named("redis-server"))

    def left() -> set[int]:
        return set(processes_with(str(running.folder))) - redis

    assert len(left()) > 6, "Ray's own, Serve's, replicas, gateways"
    running.process.kill()
    running.process.wait()
    until("all its processes are gone", lambda: not left(), 120)
