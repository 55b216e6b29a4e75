"""A whole cluster on this machine: a private Redis, Ray with replicas under Serve, and gateways before them.

The same parts as on many machines, started in order and stopped in reverse. Nothing outlives this process, even when it
is killed: see `guarded_process` and `sweeper`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
import ray
from ray import serve
from ray.serve.generated import serve_pb2
from ray.serve.generated.serve_pb2_grpc import RayServeAPIServiceStub

from services.config import PREFIX, ServeConfig
from services.exposure import door_files
from services.guarded_process import GuardedProcess
from services.replica.parts import model_folder
from services.replica.ray_app import RayReplica, build
from services.sessions.embedded_redis import EmbeddedRedis
from swaa_runtime.errors import SwaaError

APPLICATION = "swaa"
"""Name of the Serve application; gateways give it as metadata `application` if there are several."""

SERVICER = "services.pb.swaa.v1.replica_pb2_grpc.add_ReplicaDirectoryServicer_to_server"
OBJECT_STORE_BYTES = 100 << 20
"""Little more than the least that Ray takes: leases are small, and nothing else passes through it."""

RAY_SETTINGS = {
    "RAY_worker_niceness": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
}
"""For busy machines. Ray's workers, replicas too, would give way to all else (nice 15), and Serve kills a proxy that is
not up within 5 s, and then does not start."""

SWEEP_S = 10.0

ROUTED_S = 60.0
GATEWAY_START_S = 180.0
GATEWAY_STOP_S = 10.0
"""Beyond the time that its running requests have."""


logger = logging.getLogger(__name__)


class ClusterFailed(SwaaError):
    """A part of the cluster did not start."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that runs.

    Attributes:
        replicas: host:port of Serve's gRPC proxy, where leases are opened.
        redis_url: where sessions are.
        gateways: the gateways; `Gateway.address` is for clients.
    """

    replicas: str
    redis_url: str
    gateways: tuple[Gateway, ...]

    def keep_up(self) -> None:
        """Start again what has ended by itself: gateways, that is; replicas are Serve's to replace.

        Raises:
            ClusterFailed: a gateway that was started again has ended before it served.
        """
        for gateway in self.gateways:
            gateway.keep_up()


class Gateway:
    """A `swaa gateway` process, and its successors at the same addresses.

    Attributes:
        address: host:port for clients of gRPC.
        log_path: where its output goes.
    """

    def __init__(self, settings: Mapping[str, str], log_path: Path, folder: Path) -> None:
        """Start it with these settings over our environment; it says in `folder` when it is ready.

        Raises:
            ClusterFailed: it does not come up; the message has the end of its log. Nothing is left of it.
        """
        self.log_path = log_path
        self._settings = dict(settings)
        self._ready = {"listen": folder / "address", "http_listen": folder / "http_address"}
        self._process = self._started()
        try:
            deadline_s = time.monotonic() + GATEWAY_START_S
            while not self._ready["listen"].exists():
                if time.monotonic() > deadline_s or self._process.exit_code() is not None:
                    raise self._failed()
                time.sleep(0.05)
        except BaseException:
            self.stop(GATEWAY_STOP_S)
            raise
        for name, ready in self._ready.items():
            if ready.exists():  # a free port was asked for, perhaps; the successor has to listen at that one
                self._settings[name] = ready.read_text(encoding="utf-8").strip()
        self.address = self._settings["listen"]

    def keep_up(self) -> None:
        """Start a successor if it has ended. Raises ClusterFailed if it did so before it served."""
        if (code := self._process.exit_code()) is None:
            return
        if not self._ready["listen"].exists():
            raise self._failed()
        logger.error("the gateway at %s ended with code %d and is started again", self.address, code)
        for ready in self._ready.values():
            ready.unlink(missing_ok=True)
        self._process.kill()
        self._process = self._started()

    def stop(self, timeout_s: float) -> None:
        """Drain and stop it; it is killed after `timeout_s`."""
        self._process.stop(timeout_s)

    def _started(self) -> GuardedProcess:
        environment = {**os.environ, **{PREFIX + name.upper(): value for name, value in self._settings.items()}}
        files = ("--ready-file", str(self._ready["listen"]), "--http-ready-file", str(self._ready["http_listen"]))
        with self.log_path.open("ab") as log:
            command = (sys.executable, "-m", "services.cli", "gateway", *files)
            return GuardedProcess(command, log, environment=environment)

    def _failed(self) -> ClusterFailed:
        tail = self.log_path.read_text(encoding="utf-8", errors="replace")[-2000:]
        return ClusterFailed(f"a gateway did not start:\n{tail}")


@contextlib.contextmanager
def running_cluster(
    config: ServeConfig,
    num_replicas: int,
    num_gateways: int,
    options: Mapping[str, str] | None = None,
    replica: type[RayReplica] | None = None,
) -> Iterator[Cluster]:
    """A cluster, serving; all of it is stopped on leaving. Call it on the main thread, which Ray's processes die with.

    Gateways listen on `config.listen`, `config.http_listen` and the ports after them, or on free ones where these
    say 0. `options` are more
    arguments of `build`, `replica` its other one.

    Raises:
        ModelNotSupported, StoreUnavailable, ClusterFailed: something did not start; then nothing is left of it.
        InvalidRequest: a gateway may not listen there as it is.
    """
    door_files(config)  # each gateway looks itself, but only when all else runs
    state_dir = config.state_dir.expanduser().absolute()
    state_dir.mkdir(parents=True, exist_ok=True)
    model_folder(config)  # converted here, once, if it has to be
    with contextlib.ExitStack() as stack:
        redis_url = config.redis_url or stack.enter_context(EmbeddedRedis(state_dir / "redis")).url
        settings = {**explicit_settings(config), "redis_url": redis_url}
        num_cpus = max(1, (os.cpu_count() or 1) // num_replicas)
        replicas = stack.enter_context(running_serve(num_replicas * num_cpus))
        cpus = {"num_cpus": str(num_cpus), "min_replicas": str(num_replicas)}
        deploy({**settings, **cpus, **(options or {})}, replicas, replica=replica)
        shared = {"replicas": replicas, "application": APPLICATION}
        gateways = []
        for number in range(num_gateways):
            listen = {"listen": _nth(config.listen, number), "http_listen": _nth(config.http_listen, number)}
            environment = {**settings, **shared, **listen}
            log_path = state_dir / f"gateway-{number + 1}.log"
            gateways.append(stack.enter_context(running_gateway(environment, log_path, config.drain_s)))
        yield Cluster(replicas, redis_url, tuple(gateways))


def _nth(listen: str, number: int) -> str:
    """The address of a gateway: the first one's, but for the port. Empty stays empty."""
    host, _, port = listen.rpartition(":")
    return f"{host}:{int(port) + number if int(port) else 0}" if listen else ""


def explicit_settings(config: ServeConfig) -> dict[str, str]:
    """What was set, as strings that `load_config` reads back in another process; paths from the root."""
    values = config.model_dump(exclude_unset=True, exclude_none=True)
    paths = {name: value.expanduser().absolute() for name, value in values.items() if isinstance(value, Path)}
    return {name: str(value) for name, value in (values | paths).items()}


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set for processes that start meanwhile, unless they are set already: Ray's take nothing else from us."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextlib.contextmanager
def running_serve(num_cpus: int) -> Iterator[str]:
    """Ray with nothing but Serve; the address of Serve's gRPC proxy.

    Not all of it is on loopback: Serve's gRPC proxy and Ray's own ports listen on all interfaces, and Ray 2.60 has no
    setting for that. Ray's ports ask for a token; the proxy gives out leases, which are worth nothing from elsewhere.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="swaa-ray-", ignore_cleanup_errors=True))
        # Ray's agents would linger for a minute or more after we were killed.
        sweeper = GuardedProcess((sys.executable, "-m", "services.sweeper", folder, str(os.getpid())))
        stack.callback(sweeper.stop, SWEEP_S)
        port, http_port = _free_ports(2)
        stack.enter_context(_environment(RAY_SETTINGS))
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            ray.init(
                address="local",  # never one that happens to run here
                num_cpus=num_cpus,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                namespace=APPLICATION,
                _temp_dir=folder,
                _node_ip_address="127.0.0.1",
            )
            serve.start(
                http_options={"host": "127.0.0.1", "port": http_port},  # cannot be left out: no proxy then
                grpc_options={"port": port, "grpc_servicer_functions": [SERVICER]},
                logging_config={"log_level": "WARNING"},
            )
            yield f"127.0.0.1:{port}"
        finally:
            with contextlib.suppress(Exception):  # what does not stop by itself is killed with Ray
                serve.shutdown()  # type: ignore[no-untyped-call]
            ray.shutdown()


def deploy(
    args: Mapping[str, str],
    replicas: str,
    application: str = APPLICATION,
    replica: type[RayReplica] | None = None,
) -> None:
    """Run an application, or change a running one; returns when leases can be had at `replicas`.

    Raises:
        ClusterFailed: its replicas do not come up; the message is Serve's, with the replica's traceback.
    """
    try:
        # Nothing answers by HTTP, but an application without a route is unknown to the gRPC proxy as well.
        serve.run(build(args, replica), name=application, route_prefix=f"/{application}")
    except RuntimeError as exc:
        raise ClusterFailed(str(exc)) from exc
    deadline_s = time.monotonic() + ROUTED_S
    with grpc.insecure_channel(replicas) as channel:
        while not _is_routed(channel, application):  # the proxy learns of it a moment later than we do
            if time.monotonic() > deadline_s:
                raise ClusterFailed(f"Serve's proxy does not know application {application!r}")
            time.sleep(0.05)


def _is_routed(channel: grpc.Channel, application: str) -> bool:
    stub = RayServeAPIServiceStub(channel)  # type: ignore[no-untyped-call]
    try:
        answer = stub.ListApplications(serve_pb2.ListApplicationsRequest(), timeout=ROUTED_S)  # type: ignore[attr-defined]
    except grpc.RpcError:
        return False
    return application in answer.application_names


@contextlib.contextmanager
def running_gateway(settings: Mapping[str, str], log_path: Path, drain_s: float) -> Iterator[Gateway]:
    """A `Gateway`; drained and stopped on leaving."""
    with tempfile.TemporaryDirectory(prefix="swaa-gateway-") as folder:
        gateway = Gateway(settings, log_path, Path(folder))
        try:
            yield gateway
        finally:
            gateway.stop(drain_s + GATEWAY_STOP_S)


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago: Serve cannot be asked which one it took."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
