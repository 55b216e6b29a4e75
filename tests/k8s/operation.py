"""Whether the pods are safe to run and to stop: privileges, resources, probes, drains, disruption."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from services.config import PREFIX, ServeConfig
from services.exposure import door_files, replica_files
from swaa_runtime.errors import InvalidRequest
from tests.k8s.manifests import (
    GATEWAY,
    HEAD,
    REDIS,
    WORKER,
    Manifest,
    of_kind,
    pod,
    pods,
    ray_service,
    selects,
    serve_config,
)

RECOMMENDED_LABELS = {f"app.kubernetes.io/{name}" for name in ("name", "instance", "component", "part-of")}
NOT_PRIVILEGED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
STOPPING_S = 10
"""What a process may need after its last request is done."""


def check_privileges(manifests: Sequence[Manifest]) -> Iterator[str]:
    """No pod runs as root, gains privileges or writes to its image; only Ray's head may talk to the API server."""
    for one in pods(manifests):
        security = one.spec.get("securityContext", {})
        if not (security.get("runAsNonRoot") is True and security.get("runAsUser", 0) > 0):
            yield f"{one.name} may run as root"
        if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{one.name} has no seccomp profile"
        if one.container.get("securityContext") != NOT_PRIVILEGED:
            yield f"{one.name}: the container's security context is not {NOT_PRIVILEGED}"
        if one.name != HEAD and one.spec.get("automountServiceAccountToken") is not False:
            yield f"{one.name} gets a token for the API server"
    autoscaler = ray_service(manifests)["spec"]["rayClusterConfig"]["autoscalerOptions"]
    if autoscaler.get("securityContext") != NOT_PRIVILEGED:
        yield f"Ray's autoscaler: its security context is not {NOT_PRIVILEGED}"


def check_resources(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Every container asks for what it needs, and is limited; what is in memory counts, so it is limited as well."""
    for one in pods(manifests):
        for kind in ("requests", "limits"):
            missing = {"cpu", "memory"} - one.container.get("resources", {}).get(kind, {}).keys()
            yield from (f"{one.name}: {kind} has no {name}" for name in sorted(missing))
        for volume in one.spec.get("volumes", ()):
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{one.name}: volume {volume['name']} has no size limit"


def check_labels(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Every pod has Kubernetes' recommended labels."""
    for one in pods(manifests):
        yield from (f"{one.name} has no label {name}" for name in sorted(RECOMMENDED_LABELS - one.labels.keys()))


def check_probes(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Gateway and Redis have all three probes. Ray's pods must have none: KubeRay has better.

    The gateway's ask at the operators' port, where neither TLS nor a certificate is needed.
    """
    for one in pods(manifests):
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = one.container.get(name)
            if one.owner["kind"] == "RayService":
                if probe is not None:
                    yield f"{one.name}: {name} stands in the way of KubeRay's"
            elif probe is None:
                yield f"{one.name} has no {name}"
            elif one.name == GATEWAY:
                path = "/readyz" if name == "readinessProbe" else "/healthz"
                if probe.get("httpGet") != {"path": path, "port": "swaa-metrics"}:
                    yield f"{one.name}: {name} does not ask for {path} at the operators' port"


def check_exposure(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Gateways and replicas start where they listen: with TLS and clients that are known, or told to do without."""
    for name, files in ((GATEWAY, door_files), (WORKER, replica_files)):
        environment = pod(manifests, name).environment(manifests)
        settings = {key.removeprefix(PREFIX).lower(): value for key, value in environment.items()}
        config = ServeConfig.model_validate({key: settings[key] for key in settings.keys() & ServeConfig.model_fields})
        try:
            files(config)
        except InvalidRequest as exc:
            yield f"{name}: {exc}"


def check_drain(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Whatever is stopped has time for the requests that it runs."""
    gateway, worker = pod(manifests, GATEWAY), pod(manifests, WORKER)
    drain_s = float(gateway.environment(manifests)["SWAA_DRAIN_S"])
    pause_s = gateway.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    if gateway.spec["terminationGracePeriodSeconds"] < pause_s + drain_s + STOPPING_S:
        yield f"{gateway.name} is killed before its drain of {pause_s} + {drain_s:.0f} s is over"
    told = re.search(r"ray drain-node .*--deadline-remaining-seconds (\d+)", str(worker.container.get("lifecycle")))
    if told is None:
        yield f"{worker.name} does not tell Ray that it goes"
    elif int(told[1]) < drain_s + STOPPING_S:
        yield f"{worker.name} is drained by Ray before its drain of {drain_s:.0f} s is over"
    elif worker.spec["terminationGracePeriodSeconds"] < int(told[1]) + STOPPING_S:
        yield f"{worker.name} is killed before Ray's drain of {told[1]} s is over"
    if ray_service(manifests)["spec"]["rayClusterDeletionDelaySeconds"] < drain_s:
        yield f"a replaced Ray cluster is deleted before its drain of {drain_s:.0f} s is over"


def check_disruption(manifests: Sequence[Manifest]) -> Iterator[str]:
    """What has several pods is spread, and keeps some when nodes are drained; what has one lets its node be drained."""
    (autoscaler,) = of_kind(manifests, "HorizontalPodAutoscaler")
    (group,) = ray_service(manifests)["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    fewest = {GATEWAY: autoscaler["spec"]["minReplicas"], WORKER: group["minReplicas"]}
    for name, count in fewest.items():
        one = pod(manifests, name)
        budgets = [
            budget["spec"]
            for budget in of_kind(manifests, "PodDisruptionBudget")
            if selects(budget["spec"]["selector"]["matchLabels"], one.labels)
        ]
        if count > 1 and not (budgets and one.spec.get("topologySpreadConstraints")):
            yield f"{name} is not spread, or has no disruption budget"
        if any(budget.get("minAvailable", 0) >= count for budget in budgets):
            yield f"{name}: its disruption budget lets no node be drained"


def check_sizes(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Numbers that hang together: GPUs, replicas and workers, sessions and Redis's memory."""
    redis, worker = pod(manifests, REDIS), pod(manifests, WORKER)
    quota_mib = int(worker.environment(manifests)["SWAA_SESSION_QUOTA_MIB"])
    maxmemory_mib = _mib(redis.environment(manifests)["MAXMEMORY"])
    if quota_mib >= maxmemory_mib:
        yield f"sessions may take {quota_mib} MiB and Redis {maxmemory_mib}: Ray's head needs some too"
    if 2 * maxmemory_mib > _mib(redis.container["resources"]["limits"]["memory"]):
        yield "Redis needs twice its maxmemory while it rewrites its log"
    (group,) = ray_service(manifests)["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    for application in serve_config(manifests)["applications"]:
        args, (deployment,) = application["args"], application["deployments"]
        for bound in ("min", "max"):
            if int(args[f"{bound}_replicas"]) != group[f"{bound}Replicas"]:
                yield f"{bound}_replicas of {deployment['name']} is not {bound}Replicas of the workers"
        gpus = int(worker.container["resources"]["limits"].get("nvidia.com/gpu", 0))
        if int(args["num_gpus"]) != gpus or (args["device"] == "cuda") != (gpus > 0):
            yield f"{deployment['name']}: device, num_gpus and the worker's {gpus} GPUs do not fit"
        if gpus and int(args.get("tensor_parallel", 1)) != gpus:
            yield f"{deployment['name']}: tensor_parallel leaves some of the worker's {gpus} GPUs idle, or wants more"
        if deployment["max_replicas_per_node"] != 1:
            yield f"{deployment['name']}: two replicas of one pod would want one port"


def _mib(size: str) -> int:
    """Of Redis's and Kubernetes' way to write sizes."""
    return int(size.lower().rstrip("gib")) << 10
