"""A replica under Ray Serve: `build` makes the Serve application that a cluster runs, one for each model.

Serve places replicas, restarts them, drains them and decides how many there are. It sees leases, not tokens: a gateway
opens `ReplicaDirectory.Lease` through Serve's gRPC proxy, gets a replica's address and holds the lease while its turn
runs there. Several models are several applications; a gateway says which one by the metadata `application`. With
only one in the cluster it may be left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import os
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from services.certificate_source import grpc_server_credentials, watched_certificates
from services.config import ServeConfig, load_config
from services.exposure import replica_files
from services.http_server import serving
from services.pb.swaa.v1 import replica_pb2 as pb
from services.replica.directory import Directory
from services.replica.parts import learning_cost, model_facts, running_parts
from services.replica.ray_router import QUEUED_TOKENS, SessionRouter
from services.replica.ray_scaling import PREDICTED_WAIT_S, WaitPolicy
from services.replica.server import ReplicaServer
from services.replica.wire import facts_message
from services.telemetry import logs
from services.telemetry.certificate_metrics import CertificateMetrics
from services.telemetry.page import MetricsPage
from services.telemetry.process import running_telemetry
from swaa_runtime.errors import InvalidRequest
from swaa_runtime.runner import ModelRunner

logger = logging.getLogger(__name__)

HEALTH_CHECK_PERIOD_S = 5.0
"""A replica that fails three checks in a row is replaced."""

CLOSE_S = 5.0
"""What a replica may take to stop after its last turn."""

LEAST_LOOK_BACK_S = 11.0
"""Serve measures every 10 s, and wants to see more than one of its measurements at a time."""

LAST_MESSAGE_S = 1.0
"""A gateway gives its lease back just before it has closed its stream."""


class DeploymentOptions(BaseModel):
    """What `build` takes beside a service's settings. Unknown names are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("swaa", description="the deployment's name, as in metrics and in Serve's configuration")
    num_gpus: float | None = Field(None, ge=0, description="of a replica; as many as compute its model if absent")
    num_cpus: float = Field(1.0, ge=0)
    min_replicas: int = Field(1, ge=1)
    max_replicas: int | None = Field(None, ge=1, description="as many as min_replicas if absent: no autoscaling")
    max_leases: int | None = Field(None, ge=1, description="turns at a time on a replica; max_running if absent")
    max_waiting_leases: int = Field(256, ge=0, description="leases that wait for a replica at each proxy; more fail")
    target_wait_s: float = Field(2.0, gt=0, description="autoscaling: how long prompts may wait for the engine")
    upscale_delay_s: float = Field(10.0, ge=0, description="autoscaling: more are wanted for so long, then started")
    downscale_delay_s: float = Field(300.0, ge=0, description="autoscaling: fewer are wanted for so long, then stopped")


def build(args: Mapping[str, str], replica: type[RayReplica] | None = None) -> serve.Application:
    """The Serve application of one model.

    `args` has `DeploymentOptions`, and settings of the service by their names in `ServeConfig`, which go over the
    SWAA_ variables of the machine a replica runs on. What is secret (`redis_url`) is better left to the environment.
    `replica` is another class of replicas, for benchmarks.

    Raises:
        InvalidRequest: for an SWAA_ variable that does not exist, or fewer GPUs than are to compute the model together.
        pydantic.ValidationError: for a name that does not exist, or a value out of bounds.
    """
    settings = {name: value for name, value in args.items() if name in ServeConfig.model_fields}
    options = DeploymentOptions.model_validate({name: args[name] for name in args.keys() - settings.keys()})
    config = load_config(**settings)
    max_leases = options.max_leases or config.max_running
    num_gpus = _num_gpus(options, config)
    deployment = serve.deployment(
        name=options.name,
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": num_gpus},
        max_ongoing_requests=max_leases,
        max_queued_requests=options.max_waiting_leases,
        graceful_shutdown_timeout_s=config.drain_s + CLOSE_S,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        request_router_config={"request_router_class": SessionRouter, "request_routing_stats_period_s": 1.0},
        **_size(options, max_leases),
    )(replica or RayReplica)
    return deployment.bind(settings)


def _num_gpus(options: DeploymentOptions, config: ServeConfig) -> float:
    """Ray shows a replica, and the processes that it starts, so many GPUs."""
    needed = config.tensor_parallel if config.device == "cuda" else 0
    if options.num_gpus is None:
        return needed
    if needed > 1 and options.num_gpus != needed:
        raise InvalidRequest("num_gpus", options.num_gpus, f"must be {needed}, as tensor_parallel is")
    return options.num_gpus


def _size(options: DeploymentOptions, max_leases: int) -> dict[str, Any]:
    """A fixed number of replicas, or what they are scaled by."""
    if options.max_replicas is None or options.max_replicas == options.min_replicas:
        return {"num_replicas": options.min_replicas}
    policy = {
        "policy_function": WaitPolicy,
        "policy_kwargs": {"target_wait_s": options.target_wait_s, "max_leases": max_leases},
    }
    scaling = {
        "min_replicas": options.min_replicas,
        "max_replicas": options.max_replicas,
        "upscale_delay_s": options.upscale_delay_s,
        "downscale_delay_s": options.downscale_delay_s,
        "look_back_period_s": max(options.upscale_delay_s, LEAST_LOOK_BACK_S),
        "policy": policy,
    }
    return {"autoscaling_config": scaling}


class RayReplica:
    """What runs in a replica's process. Serve calls the methods, on one event loop; `Lease` is for gateways."""

    runner: type[ModelRunner] = ModelRunner

    async def __init__(self, settings: Mapping[str, str]) -> None:  # type: ignore[misc]  # Serve awaits it
        self._stack = contextlib.AsyncExitStack()  # `__del__` is called even if this fails
        config = load_config(**settings)
        if config.redis_url is None:
            raise InvalidRequest("redis_url", None, "must be set: replicas share sessions in one Redis")
        logs.configure_hosted(config.log_level, config.log_format)
        async with contextlib.AsyncExitStack() as stack:
            certificates = await stack.enter_async_context(watched_certificates(replica_files(config)))
            telemetry = await stack.enter_async_context(running_telemetry(config.otlp_endpoint, "swaa-replica"))
            parts = await stack.enter_async_context(running_parts(config, self.runner, telemetry))
            cost = await learning_cost(config, parts, _log_calibration)
            CertificateMetrics(telemetry.registry, {"replicas": certificates})
            credentials = None if certificates is None else grpc_server_credentials(certificates)
            host, port = config.replica_host, config.replica_port
            server = ReplicaServer(parts.replica, parts.model_folder, host, port, credentials)
            await server.start()
            stack.push_async_callback(server.stop, LAST_MESSAGE_S)
            if config.metrics_listen:
                page = MetricsPage(telemetry.registry, [parts.engine_metrics.refresh])
                served = await stack.enter_async_context(serving(page.app(), "metrics_listen", config.metrics_listen))
                logger.info("metrics on port %d", served.port)
            self._stack = stack.pop_all()
        # With the process id, so that one can find the process of a replica that one hears of.
        replica_id = f"{serve.get_replica_context().replica_tag}#{os.getpid()}"
        facts = model_facts(parts, cost.profile)
        self._directory = Directory(
            parts.replica,
            replica_id,
            server.address,
            lambda: facts_message(dataclasses.replace(facts, cost=cost.profile)),
        )
        self._replica = parts.replica
        self._cost = cost
        gc.freeze()  # as `services.cli.process` does
        logger.info("replica %s serves %s on %s", replica_id, config.model, server.address)

    async def Lease(self, request: pb.LeaseRequest) -> AsyncGenerator[pb.LeaseGrant, None]:
        """See the proto. To Serve a lease is a request: it goes on until it is cancelled."""
        async with contextlib.aclosing(self._directory.lease(request)) as grants:
            async for grant in grants:
                yield grant

    async def check_health(self) -> None:
        """Serve replaces the replica if this raises EngineFailed a few times."""
        self._directory.check()

    async def record_routing_stats(self) -> dict[str, float]:
        """For `SessionRouter`."""
        return {QUEUED_TOKENS: self._replica.queued_tokens}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For `WaitPolicy`."""
        queued_tokens = self._replica.queued_tokens
        return {QUEUED_TOKENS: queued_tokens, PREDICTED_WAIT_S: queued_tokens * self._cost.profile.token_ms / 1e3}

    async def __del__(self) -> None:
        """Serve calls this, once, when no lease is held any more: then no turn runs, and all sessions are saved."""
        await self._stack.aclose()


def _log_calibration(done: int, total: int) -> None:
    logger.info("first start on this machine: measuring costs, %d of %d", done, total)
