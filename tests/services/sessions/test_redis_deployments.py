"""The store on what people run: a cluster, sentinels with a failover, TLS, a user who may do no more than needed."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
import trustme

from services.errors import QuotaExceeded, SessionNotFound, StaleSession, StoreUnavailable
from services.quota import Quota
from services.sessions import redis_quota_scripts, redis_scripts
from services.sessions.embedded_redis import EmbeddedRedis
from services.sessions.redis_store import RedisSessionStore

from .builders import asynchronous, make_prefix, make_session
from .servers import Server, cluster_state, command, redis_cluster, redis_sentinel, redis_server, until

pytestmark = pytest.mark.redis

ACL = (
    "~swaa:* +ping +evalsha +eval +time +get +set +strlen +unlink +pttl +pexpire +pexpireat +incrby +decrby"
    " +hget +hset +hmget +zadd +zrem +zcount +zscore +zrange +zrevrange +zrangebyscore +zremrangebyscore"
)
"""All that the store's user needs, beside `on` and a password (docs/operating.md). In a cluster, CLUSTER_ACL too."""

CLUSTER_ACL = "+cluster|slots +cluster|shards +command"


async def use_everything(store: RedisSessionStore, tenant: str = "acme") -> None:
    """All calls, each doing what it should, from nothing to nothing."""
    first, second, prefix = make_session(), make_session(version=2), make_prefix(seed=9)
    await store.ping()
    fence = await store.acquire(tenant, "chat", "one")
    await store.save(tenant, first.manifest, first.segments, 0, fence)
    await store.renew(tenant, "chat", "one")
    await store.save(tenant, second.manifest, second.segments, 1, fence)
    with pytest.raises(StaleSession):
        await store.save(tenant, second.manifest, second.segments, 1, fence - 1)
    await store.release(tenant, "chat", "one")
    await store.fork(tenant, "chat", "copy")
    assert {manifest.session_id for manifest in await store.list_sessions(tenant, 9)} == {"chat", "copy"}
    await store.delete(tenant, "chat")
    with pytest.raises(SessionNotFound):
        await store.get(tenant, "chat")
    blobs = await store.fetch(tenant, (await store.get(tenant, "copy")).segments)
    assert blobs == [bytes(data) for data in second.segments.values()]
    await store.save_prefix(tenant, prefix.prefix, prefix.segments, 60.0)
    assert await store.find_prefix(tenant, ["unknown", prefix.prefix.prefix_id]) == prefix.prefix
    await store.delete_prefixes(tenant, [prefix.prefix.prefix_id])
    await store.delete(tenant, "copy")
    quotas = store.quotas(timeout_s=60.0)
    await quotas.take(tenant, Quota(10, 10, 10), "lease")
    await quotas.take_prompt(tenant, Quota(10, 10, 10), 1)
    await quotas.renew(tenant, "lease")
    await quotas.release(tenant, "lease")
    assert await store.usage(tenant) == 0


@contextlib.asynccontextmanager
async def opened(url: str, **options: float) -> AsyncIterator[RedisSessionStore]:
    store = RedisSessionStore.from_url(url, 3600.0, **{"timeout_s": 2.0, **options})  # type: ignore[arg-type]
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes


@asynchronous
async def test_a_cluster(cluster: list[Server]) -> None:
    async with opened(f"redis+cluster://127.0.0.1:{cluster[0].port}") as store:
        for number in range(12):
            await use_everything(store, f"tenant-{number}")
            saved = make_session()
            await store.save(f"tenant-{number}", saved.manifest, saved.segments, 0)
    for node in cluster:
        with node.client() as client:
            assert client.dbsize() > 0, "tenants are spread, each on one node"


@asynchronous
async def test_scripts_that_a_node_does_not_know_are_sent_again(cluster: list[Server]) -> None:
    async with opened(f"redis+cluster://127.0.0.1:1,127.0.0.1:{cluster[1].port}") as store:
        await use_everything(store)
        for node in cluster:
            with node.client() as client:
                client.script_flush()
        await use_everything(store)


@asynchronous
async def test_a_cluster_that_lost_a_node_says_so_in_bounded_time(tmp_path: Path) -> None:
    with redis_cluster(tmp_path) as nodes:
        async with opened(f"redis+cluster://127.0.0.1:{nodes[0].port}") as store:
            await use_everything(store)
            for node in nodes[1:]:
                node.kill()
            until(lambda: cluster_state(nodes[0]) == "fail")
            begin_s = time.monotonic()
            for tenant in ("a", "b", "c", "d"):
                with pytest.raises(StoreUnavailable):
                    await store.get(tenant, "chat")
            assert time.monotonic() - begin_s < 4 * 2.5


@asynchronous
async def test_after_a_failover_the_store_works_again(tmp_path: Path) -> None:
    with (
        redis_server(tmp_path / "primary", "--save", "") as primary,
        redis_server(tmp_path / "replica", "--save", "", "--replicaof", "127.0.0.1", str(primary.port)) as replica,
        redis_sentinel(tmp_path / "sentinel", primary, "swaa") as sentinel,
    ):
        with replica.client() as client:
            until(lambda: client.info("replication")["master_link_status"] == "up")
        # The first sentinel is away: the second is asked.
        async with opened(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/swaa/0") as store:
            await use_everything(store)
            saved, later = make_session(), make_session(version=2)
            fence = await store.acquire("acme", "chat", "one")
            await store.save("acme", saved.manifest, saved.segments, 0, fence)
            with primary.client() as client:
                client.wait(1, 2000)
            primary.kill()
            with pytest.raises(StoreUnavailable):
                await store.get("acme", "chat")
            begin_s = time.monotonic()
            while True:
                try:
                    await store.save("acme", later.manifest, later.segments, 1, fence)
                    break
                except StoreUnavailable:
                    assert time.monotonic() - begin_s < 20
                    await asyncio.sleep(0.1)
            assert await store.fetch("acme", (await store.get("acme", "chat")).segments)
            await use_everything(store, "globex")


@asynchronous
async def test_a_service_that_the_sentinels_do_not_know(tmp_path: Path) -> None:
    with redis_server(tmp_path / "primary", "--save", "") as primary:
        async with opened(f"redis+sentinel://:correct-horse@127.0.0.1:{primary.port}/nobody") as store:
            with pytest.raises(StoreUnavailable) as caught:
                await store.ping()
            assert "correct-horse" not in str(caught.value)


@contextlib.asynccontextmanager
async def tls_in_front_of(socket_path: Path, context: ssl.SSLContext) -> AsyncIterator[int]:
    """A TLS end in front of a server that has none; its port."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(socket_path)
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]
    await asyncio.sleep(0.05)  # lets the last connection end on its own


@asynchronous
async def test_tls(server: EmbeddedRedis, tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    for name, made in (("ca", authority), ("stranger", stranger)):
        made.cert_pem.write_to_path(tmp_path / f"{name}.pem")
    mine = authority.issue_cert("swaa@example.org")
    mine.cert_chain_pems[0].write_to_path(tmp_path / "mine.pem")
    mine.private_key_pem.write_to_path(tmp_path / "mine.key")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    identity = f"ssl_certfile={tmp_path}/mine.pem&ssl_keyfile={tmp_path}/mine.key"
    async with tls_in_front_of(server.socket_path, context) as port:
        async with opened(f"rediss://127.0.0.1:{port}?ssl_ca_certs={tmp_path}/ca.pem&{identity}") as store:
            await use_everything(store)
        for refused in (f"ssl_ca_certs={tmp_path}/stranger.pem&{identity}", f"ssl_ca_certs={tmp_path}/ca.pem"):
            async with opened(f"rediss://127.0.0.1:{port}?{refused}") as store:
                with pytest.raises(StoreUnavailable, match="cannot be reached"):
                    await store.ping()


@asynchronous
async def test_a_user_who_may_do_no_more_than_needed(server: EmbeddedRedis, raw: redis.Redis) -> None:
    command(raw, "ACL", "SETUSER", "swaa", "reset", "on", ">correct-horse", *ACL.split())
    url = server.url.replace("unix://", "unix://swaa:correct-horse@")
    try:
        async with opened(url, quota_bytes=100_000) as store:
            await use_everything(store)
            big = make_session(layers=2000)
            with pytest.raises(QuotaExceeded):
                await store.save("acme", big.manifest, big.segments, 0)
        async with opened(url.replace("horse@", "donkey@")) as store:
            with pytest.raises(StoreUnavailable) as caught:
                await store.ping()
            assert "correct-donkey" not in str(caught.value)
        other = RedisSessionStore.from_url(url, 60)
        other._prefix = "other"
        with pytest.raises(StoreUnavailable, match=r"(?i)no permissions"):
            await other.usage("acme")
        await other.close()
    finally:
        command(raw, "ACL", "DELUSER", "swaa")


def test_the_permissions_are_those_that_are_needed() -> None:
    named = [*vars(redis_scripts).items(), *vars(redis_quota_scripts).items()]
    texts = " ".join(text for name, text in named if name.isupper())
    by_scripts = set(re.findall(r"redis\.call\('(\w+)'", texts))
    by_the_client = {"PING", "EVALSHA", "EVAL", "GET", "SET", "HMGET", "ZREVRANGE"}
    assert {word[1:].upper() for word in ACL.split() if word.startswith("+")} == by_scripts | by_the_client


@asynchronous
async def test_a_cluster_user_who_may_do_no_more_than_needed(cluster: list[Server]) -> None:
    for node in cluster:
        with node.client() as client:
            words = [*ACL.split(), *CLUSTER_ACL.split()]
            command(client, "ACL", "SETUSER", "swaa", "reset", "on", ">correct-horse", *words)
    async with opened(f"redis+cluster://swaa:correct-horse@127.0.0.1:{cluster[0].port}") as store:
        await use_everything(store)
    async with opened(f"redis+cluster://swaa:wrong-donkey@127.0.0.1:{cluster[0].port}") as store:
        with pytest.raises(StoreUnavailable) as caught:
            await store.ping()
        assert "wrong-donkey" not in f"{caught.value} {caught.value.__cause__}"
