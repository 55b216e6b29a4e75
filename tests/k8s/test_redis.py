"""What start.sh and redis.conf make of a real Redis: its users, and what they may do."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.exceptions import NoPermissionError

from services.sessions.embedded_redis import find_redis_server
from tests.k8s.manifests import REPOSITORY
from tests.services.sessions.test_redis_deployments import ACL

pytestmark = [pytest.mark.k8s, pytest.mark.redis]

FOLDER = REPOSITORY / "k8s" / "base" / "redis"
PASSWORDS = {"REDISCLI_AUTH": "5e551045", "RAY_PASSWORD": "0ea7"}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Redis started by start.sh, on a socket in the folder given."""
    folder = tmp_path_factory.mktemp("redis")
    script = (FOLDER / "start.sh").read_text().replace("/run/redis", str(folder)).replace("/etc/redis", str(folder))
    script = script.replace("exec redis-server", f"exec {find_redis_server()}")
    settings = (FOLDER / "redis.conf").read_text().replace("/run/redis", str(folder)).replace("/data", str(folder))
    (folder / "redis.conf").write_text(settings.replace("port 6379", f"port 0\nunixsocket {folder}/socket"))
    environment = os.environ | PASSWORDS | {"MAXMEMORY": "64mb"}
    process = subprocess.Popen(["sh", "-c", script], env=environment, stdout=subprocess.DEVNULL)  # noqa: S607
    try:
        deadline = time.monotonic() + 10
        while not (folder / "socket").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield folder
    finally:
        process.terminate()
        process.wait(10)


def as_user(started: Path, name: str, password: str) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(started / "socket"), username=name, password=password)


def test_nobody_gets_in_without_a_password(started: Path) -> None:
    with redis.Redis(unix_socket_path=str(started / "socket")) as client, pytest.raises(redis.AuthenticationError):
        client.ping()
    with as_user(started, "swaa", "wrong") as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_sessions_and_ray_cannot_reach_each_other(started: Path) -> None:
    with as_user(started, "swaa", "5e551045") as sessions, as_user(started, "ray", "0ea7") as ray:
        assert sessions.set("swaa:{acme}:bytes", 1)
        assert ray.hset("RAYsome@KV", "key", "value") == 1
        for client, key in ((sessions, "RAYsome@KV"), (ray, "swaa:{acme}:bytes")):
            with pytest.raises(NoPermissionError):
                client.strlen(key)
            with pytest.raises(NoPermissionError):
                client.flushall()


def test_the_session_store_may_do_what_its_own_tests_show_it_needs() -> None:
    (line,) = re.findall(r"^user swaa on #\$\(.*?\) (.*)$", (FOLDER / "start.sh").read_text(), re.MULTILINE)
    assert line == ACL


def test_passwords_are_nowhere_to_be_read(started: Path) -> None:
    users = (started / "users.acl").read_text()
    assert not any(password in users for password in PASSWORDS.values())
    assert (started / "users.acl").stat().st_mode & 0o077 == 0


def test_no_key_is_evicted(started: Path) -> None:
    text = (FOLDER / "redis.conf").read_text()
    assert "maxmemory-policy noeviction" in text
    assert "appendonly yes" in text
